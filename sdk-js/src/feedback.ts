/** Feedback events: their types, and their form on the wire. No I/O. */

import type { HttpRequest } from './http.js'

/** Fields that all kinds of feedback have. */
export interface FeedbackFields {
  /** The `id` of the chat completion. */
  readonly responseId: string
  /** Your id of the user. Only a pseudonym of it is stored. */
  readonly userId: string
  /** Id of the event; the default is a new UUIDv7. Pass your own to make your retries recognisable. */
  readonly eventId?: string | undefined
  /** Index of the choice that the feedback is about, if the completion has several. */
  readonly choice?: number | undefined
  /** Labels to store with the event. */
  readonly tags?: readonly string[] | undefined
  /** When the user gave the feedback; the default is now. */
  readonly occurredAt?: Date | undefined
  /** Line of the response; the default is the service's own. */
  readonly line?: string | undefined
}

/** Another answer: its text, or the index of another choice of the same completion. */
export type Answer = string | number

/** What the user stated, by kind. */
export type Statement =
  | { readonly kind: 'thumbs'; readonly value: 'up' | 'down' }
  | { readonly kind: 'rating'; readonly value: 1 | 2 | 3 | 4 | 5 }
  /** The answer as it should have been. */
  | { readonly kind: 'correction'; readonly value: string }
  /** A remark on the answer. */
  | { readonly kind: 'comment'; readonly value: string }
  /** The answer is better than another one (`over`), or worse (`under`). */
  | { readonly kind: 'preference'; readonly value: { readonly over: Answer } | { readonly under: Answer } }
  /** Withdraws the earlier event of the same user with this id. */
  | { readonly kind: 'retract'; readonly value: string }

export type FeedbackKind = Statement['kind']

/** One feedback event: one statement of one user about one response. */
export type Feedback = FeedbackFields & Statement

/** Optional fields of the methods that send one kind. */
export type FeedbackOptions = Omit<FeedbackFields, 'responseId' | 'userId'>

/** Acknowledgement of a feedback event that is stored durably in the log. */
export interface Accepted {
  readonly eventId: string
  /** `duplicate` if the same event was sent before. It counts once. */
  readonly status: 'accepted' | 'duplicate'
  /** Whether a model can be trained on the event. */
  readonly actionable: boolean
  /** How to make the event actionable, if it is not. */
  readonly hint: string | null
}

/** Outcome of one feedback event, followed to its batch, version and serving state. */
export interface Receipt {
  readonly responseId: string
  readonly eventId: string
  /** Outcome of the event, for example `batched` or `superseded`; `pending` if it has none yet. */
  readonly outcome: string
  /** The batch that contains the event's example. */
  readonly batchId: string | null
  /** The run that trained `version`. */
  readonly runId: string | null
  /** The first version whose dataset includes the batch and that passed the gate; if none passed, the first one. */
  readonly version: string | null
  /** The gate's verdict on `version`: `passed`, `failed` or `inconclusive`. */
  readonly verdict: string | null
  /** Whether a version whose dataset includes the batch serves users now. */
  readonly serving: boolean
  readonly servingVersion: string | null
  /** Why the event was refused, if the outcome is `refused`. */
  readonly reason: string | null
  /** What to do about the outcome, if anything can be done. */
  readonly remedy: string | null
  /** The outcome; a batched event moves on to `trained`, `published`, `canary` and `serving`, or to `rolled_back`. */
  readonly stage: string
  /** The same in a sentence. */
  readonly detail: string
}

/** Return the request that sends a feedback event, which must have an id. */
export function feedbackRequest(feedback: Feedback & { readonly eventId: string }): HttpRequest {
  const body = {
    event_id: feedback.eventId,
    response_id: feedback.responseId,
    user_id: feedback.userId,
    kind: feedback.kind,
    value: feedback.value,
    choice: feedback.choice,
    tags: feedback.tags,
    occurred_at: feedback.occurredAt,
    line: feedback.line,
  }
  return { method: 'POST', path: '/v1/feedback', responseId: feedback.responseId, body: JSON.stringify(body) }
}

/** Return the request for the receipt of an event. */
export function receiptRequest(responseId: string, eventId: string): HttpRequest {
  const path = `/v1/feedback/${segment(responseId)}/${segment(eventId)}`
  return { method: 'GET', path, responseId }
}

/** Return a body of the service with its names in camel case. Fields that this client does not know are kept. */
export function fromWire<T>(body: unknown): T {
  return Object.fromEntries(
    Object.entries(body as object).map(([name, value]) => [
      name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()),
      value as unknown,
    ]),
  ) as T
}

function segment(id: string): string {
  // Every URL parser removes these two, also in their escaped form.
  if (id === '.' || id === '..') throw new TypeError(`'${id}' is no id that a URL can hold`)
  return encodeURIComponent(id)
}
