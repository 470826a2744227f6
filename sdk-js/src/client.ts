/** The client. */

import { newEventId } from './event-id.js'
import {
  type Accepted,
  type Answer,
  type Feedback,
  type FeedbackOptions,
  type Receipt,
  type Statement,
  feedbackRequest,
  fromWire,
  receiptRequest,
} from './feedback.js'
import { type CallOptions, type Fetch, Http } from './http.js'
import { type RecordingOptions, recordingFetch } from './openai.js'
import { BackgroundQueue, type FlushReport } from './queue.js'
import { type Recorded, type RecordedResponse, responseRequest } from './responses.js'
import { type LoopwrightOptions, type Settings, isPage, resolveSettings } from './settings.js'

/** Options of the methods that send one kind of feedback. */
export type SendOptions = FeedbackOptions & CallOptions

/**
 * Client for the feedback service.
 *
 * The methods that return a promise resolve once the event is stored durably in the log. `enqueue` and
 * `enqueueResponse` return at once and send in the background; call `flush` before the process ends.
 *
 * Broken connections, time-outs and the statuses 429, 502, 503 and 504 are retried. A feedback event keeps its id over
 * all attempts, so it is counted once. Every promise rejects with an `Unreachable` or a `Problem` if its request fails.
 */
export class Loopwright {
  readonly #settings: Settings
  readonly #http: Http
  readonly #queue: BackgroundQueue
  readonly #closed = new AbortController()

  /** Create a client. It connects with the first request. */
  constructor(options: LoopwrightOptions = {}) {
    const settings = resolveSettings(options)
    this.#settings = settings
    this.#http = new Http({ ...settings, baseUrl: settings.feedbackUrl })
    this.#queue = new BackgroundQueue(this.#http, settings.queue, (error, { responseId, path, body = '' }) =>
      settings.onError({ error, responseId, path, body }),
    )
    if (isPage()) this.#sendOnPageHide()
  }

  /** Send one feedback event. Rejects with a `Conflict` if its id was already used for different feedback. */
  async send(feedback: Feedback, options: CallOptions = {}): Promise<Accepted> {
    return fromWire(await this.#http.request(feedbackRequest(withEventId(feedback)), options))
  }

  /** Send that the user liked the answer. */
  async thumbsUp(responseId: string, userId: string, options?: SendOptions): Promise<Accepted> {
    return this.#sendStatement(responseId, userId, { kind: 'thumbs', value: 'up' }, options)
  }

  /** Send that the user disliked the answer. */
  async thumbsDown(responseId: string, userId: string, options?: SendOptions): Promise<Accepted> {
    return this.#sendStatement(responseId, userId, { kind: 'thumbs', value: 'down' }, options)
  }

  /** Send the user's rating, from 1 (worst) to 5 stars. */
  async rate(responseId: string, userId: string, stars: 1 | 2 | 3 | 4 | 5, options?: SendOptions): Promise<Accepted> {
    return this.#sendStatement(responseId, userId, { kind: 'rating', value: stars }, options)
  }

  /** Send the user's correction: `text` is what the answer should have been. */
  async correct(responseId: string, userId: string, text: string, options?: SendOptions): Promise<Accepted> {
    return this.#sendStatement(responseId, userId, { kind: 'correction', value: text }, options)
  }

  /** Send the user's comment: `text` names the faults of the answer. */
  async comment(responseId: string, userId: string, text: string, options?: SendOptions): Promise<Accepted> {
    return this.#sendStatement(responseId, userId, { kind: 'comment', value: text }, options)
  }

  /** Send that the user prefers this answer to another one (`over`), or another one to this answer (`under`). */
  async prefer(
    responseId: string,
    userId: string,
    value: { readonly over: Answer } | { readonly under: Answer },
    options?: SendOptions,
  ): Promise<Accepted> {
    return this.#sendStatement(responseId, userId, { kind: 'preference', value }, options)
  }

  /** Retract an earlier event of the same user. The retraction is itself an event. */
  async retract(
    responseId: string,
    userId: string,
    retractedEventId: string,
    options?: SendOptions,
  ): Promise<Accepted> {
    return this.#sendStatement(responseId, userId, { kind: 'retract', value: retractedEventId }, options)
  }

  /**
   * Record an answer that Loopwright did not generate, so that it can learn from feedback on it.
   *
   * Feedback may be sent before or after. If the id was recorded before, the first record stays in force.
   */
  async recordResponse(response: RecordedResponse, options: CallOptions = {}): Promise<Recorded> {
    return fromWire(await this.#http.request(responseRequest(response), options))
  }

  /** Return the receipt of a feedback event: its outcome, followed to the version that serves. */
  async receipt(responseId: string, eventId: string, options: CallOptions = {}): Promise<Receipt> {
    return fromWire(await this.#http.request(receiptRequest(responseId, eventId), options))
  }

  /**
   * Send one feedback event in the background. Returns its id at once, with which a receipt can be asked for later.
   *
   * @throws QueueFull if too many events wait. The event was not taken.
   */
  enqueue(feedback: Feedback): string {
    const event = withEventId(feedback)
    this.#queue.add(feedbackRequest(event))
    return event.eventId
  }

  /**
   * Record a response in the background.
   *
   * @throws QueueFull if too many events wait. The response was not taken.
   */
  enqueueResponse(response: RecordedResponse): void {
    this.#queue.add(responseRequest(response))
  }

  /** Wait until everything in the background is sent or dropped, for at most `timeoutMs`. Never rejects. */
  async flush(timeoutMs = 10_000): Promise<FlushReport> {
    return this.#queue.flush(timeoutMs)
  }

  /** Flush, and stop listening to the page. */
  async close(timeoutMs = 10_000): Promise<FlushReport> {
    const report = await this.flush(timeoutMs)
    this.#closed.abort()
    return report
  }

  /**
   * Return an OpenAI client that records its chat completions, streams included, in the background.
   *
   * Answers of Loopwright's inference are not recorded again. The id for feedback is the completion's `id`.
   *
   * @param client - A client of the npm package `openai`, version 5 or newer. It stays unchanged.
   */
  wrap<Client extends OpenAIClient>(client: Client, options: RecordingOptions = {}): Client {
    const own = (client as { fetch?: Fetch }).fetch
    return client.withOptions({ fetch: this.recordingFetch({ fetch: own, ...options }) }) as Client
  }

  /**
   * Return a `fetch` that records chat completions, for any client that takes one: Vercel's AI SDK, LangChain, and others.
   *
   * Requests to other paths than `/chat/completions` pass through.
   */
  recordingFetch(options: RecordingOptions = {}): Fetch {
    return recordingFetch((response) => this.#record(response), { fetch: this.#settings.fetch, ...options })
  }

  #record(response: RecordedResponse): void {
    try {
      this.enqueueResponse(response)
    } catch (error) {
      const { path, body = '' } = responseRequest(response)
      this.#settings.onError({ error: error as Error, responseId: response.responseId, path, body })
    }
  }

  async #sendStatement(
    responseId: string,
    userId: string,
    statement: Statement,
    { signal, timeoutMs, ...fields }: SendOptions = {},
  ): Promise<Accepted> {
    return this.send({ ...fields, responseId, userId, ...statement }, { signal, timeoutMs })
  }

  #sendOnPageHide(): void {
    const { signal } = this.#closed
    const send = (): void => this.#queue.sendOnPageHide()
    addEventListener('pagehide', send, { signal })
    document.addEventListener('visibilitychange', () => document.visibilityState === 'hidden' && send(), { signal })
  }
}

/** What `wrap` uses of the official client. */
export interface OpenAIClient {
  withOptions(options: { fetch: Fetch }): unknown
}

function withEventId(feedback: Feedback): Feedback & { readonly eventId: string } {
  return { ...feedback, eventId: feedback.eventId ?? newEventId() }
}
