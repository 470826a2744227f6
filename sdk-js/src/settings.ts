/** Settings of a client: from an argument, else an environment variable, else the default. */

import type { Fetch, TokenSource } from './http.js'
import { DEFAULT_BOUNDS, type QueueBounds } from './queue.js'
import { DEFAULT_RETRY, type Retry } from './retry.js'

const FEEDBACK_VARIABLE = 'LOOPWRIGHT_FEEDBACK_URL'
const API_KEY_VARIABLE = 'LOOPWRIGHT_API_KEY'
const DEFAULT_URL = 'http://127.0.0.1:8001'

/** Options of `new Loopwright(options)`. */
export interface LoopwrightOptions {
  /** Base URL of the feedback service. Default: `LOOPWRIGHT_FEEDBACK_URL`, else the local stack's. */
  readonly feedbackUrl?: string | undefined
  /** API key with the scope `ingest`, and `read` for receipts; servers only. Default: `LOOPWRIGHT_API_KEY`. */
  readonly apiKey?: string | undefined
  /**
   * Browser token for one response, or a function that gets one from your server. Takes the place of the API key, which
   * must not be in a page.
   */
  readonly token?: string | TokenSource | undefined
  /** Time-out of one attempt, in ms. Default: 10,000. */
  readonly timeoutMs?: number | undefined
  /** Retry policy: the fields that differ from the default. */
  readonly retry?: Partial<Retry> | undefined
  /** Bounds of the background queue: the fields that differ from the default. */
  readonly queue?: Partial<QueueBounds> | undefined
  /** Called for every event or response that could not be sent in the background. Default: `console.warn`. */
  readonly onError?: ((failure: BackgroundFailure) => void) | undefined
  /** Function to send requests with, instead of the global `fetch`. */
  readonly fetch?: Fetch | undefined
}

/** An event or response that was dropped by the background queue. */
export interface BackgroundFailure {
  readonly error: Error
  /** The response that it is about. */
  readonly responseId: string
  /** Path and JSON body of the request. */
  readonly path: string
  readonly body: string
}

/** Options with all defaults. */
export interface Settings {
  readonly feedbackUrl: string
  readonly token: TokenSource
  readonly timeoutMs: number
  readonly retry: Retry
  readonly queue: QueueBounds
  readonly onError: (failure: BackgroundFailure) => void
  readonly fetch: Fetch
}

/**
 * Return the settings of a client.
 *
 * @throws TypeError if an API key would be sent from a page.
 */
export function resolveSettings(options: LoopwrightOptions): Settings {
  const { token } = options
  const apiKey = options.apiKey ?? variable(API_KEY_VARIABLE)
  if (token === undefined && apiKey && isPage()) {
    throw new TypeError('an API key in a page is visible to everyone: let your server get a browser token, and pass `token`')
  }
  return {
    feedbackUrl: (options.feedbackUrl ?? variable(FEEDBACK_VARIABLE) ?? DEFAULT_URL).replace(/\/+$/, ''),
    token: typeof token === 'function' ? token : () => token ?? apiKey,
    timeoutMs: options.timeoutMs ?? 10_000,
    retry: { ...DEFAULT_RETRY, ...options.retry },
    queue: { ...DEFAULT_BOUNDS, ...options.queue },
    onError: options.onError ?? warn,
    // Not `fetch` itself: browsers refuse to call it as a method of another object.
    fetch: options.fetch ?? ((input, init) => globalThis.fetch(input, init)),
  }
}

/** Return whether this code runs in a page of a browser. */
export function isPage(): boolean {
  return typeof window !== 'undefined' && typeof document !== 'undefined'
}

function variable(name: string): string | undefined {
  const { process } = globalThis as { process?: { env?: Record<string, string | undefined> } }
  return process?.env?.[name] || undefined
}

function warn({ error, responseId, path }: BackgroundFailure): void {
  console.warn(`loopwright: a request to ${path} about response ${responseId} was not sent: ${error.message}`)
}
