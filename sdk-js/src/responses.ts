/** Responses of an app's own model: their types, and their form on the wire. No I/O. */

import type { HttpRequest } from './http.js'

/** A message of a conversation, as OpenAI's clients send it: with text, with parts, or with tool calls. */
export interface ChatMessage {
  readonly role: string
  readonly content?: unknown
  readonly [field: string]: unknown
}

/** One answer of a response. */
export interface Choice {
  /** Position among the answers; the default is the position in the array. */
  readonly index?: number | undefined
  readonly text: string
  /** Why the answer ended, as in the OpenAI API. With `length`, its end is not trained on. */
  readonly finishReason?: string | undefined
  /** Functions that the model asked the app to call, in OpenAI's form. */
  readonly toolCalls?: readonly unknown[] | undefined
}

/** Token counts of a response. */
export interface Usage {
  readonly promptTokens?: number | undefined
  readonly completionTokens?: number | undefined
}

/** One response of a model that Loopwright does not serve. */
export interface RecordedResponse {
  /** Your id of the response; feedback refers to it. */
  readonly responseId: string
  /** Your name of the model that answered. */
  readonly version: string
  /** The conversation before the answer. */
  readonly messages: readonly ChatMessage[]
  /** The answer, or several. */
  readonly choices: string | readonly Choice[]
  /** Your id of the user who asked, so that an erasure finds the response. Only a pseudonym is stored. */
  readonly userId?: string | undefined
  /** `cancelled` if the user stopped the answer; the default is `completed`. */
  readonly status?: 'completed' | 'failed' | 'cancelled' | undefined
  /** What went wrong, if it failed. */
  readonly error?: string | undefined
  /** Up to 16 labels of your own. */
  readonly metadata?: Readonly<Record<string, string>> | undefined
  readonly usage?: Usage | undefined
  /** Time from the request to the end of the answer, in ms. */
  readonly latencyMs?: number | undefined
  /** Time from the request to the first part of the answer, in ms. */
  readonly firstTokenMs?: number | undefined
  /** When the model answered; the default is now. */
  readonly createdAt?: Date | undefined
  /** Line of the response; the default is the service's own. */
  readonly line?: string | undefined
}

/** Acknowledgement of a response that is stored durably in the log. */
export interface Recorded {
  readonly responseId: string
  readonly status: 'accepted'
}

/** Return the request that records a response. */
export function responseRequest(response: RecordedResponse): HttpRequest {
  const { choices, usage } = response
  const body = {
    response_id: response.responseId,
    version: response.version,
    messages: response.messages,
    choices: (typeof choices === 'string' ? [{ text: choices }] : choices).map(wireChoice),
    user_id: response.userId,
    status: response.status,
    error: response.error,
    metadata: response.metadata,
    usage: usage && { prompt_tokens: usage.promptTokens, completion_tokens: usage.completionTokens },
    latency_ms: response.latencyMs,
    first_token_ms: response.firstTokenMs,
    created_at: response.createdAt,
    line: response.line,
  }
  return { method: 'POST', path: '/v1/responses', responseId: response.responseId, body: JSON.stringify(body) }
}

function wireChoice(choice: Choice, position: number): object {
  return {
    index: choice.index ?? position,
    text: choice.text,
    finish_reason: choice.finishReason,
    tool_calls: choice.toolCalls,
  }
}
