/** HTTP by fetch, with time-outs, retries and typed errors. Every request of the client goes through `Http`. */

import { TimedOut, TokenFailed, Unavailable, Unreachable, problemOf } from './errors.js'
import { type Retry, isRetryable, waitMs } from './retry.js'

/** A function like the global `fetch`. */
export type Fetch = typeof globalThis.fetch

/** Returns the bearer token of a request; `responseId` is the response that the request is about. */
export type TokenSource = (responseId: string) => string | undefined | Promise<string | undefined>

/** Options of one call. */
export interface CallOptions {
  /** Stops the call, including its retries. The call rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined
  /** Time-out of one attempt in ms, instead of the client's. */
  readonly timeoutMs?: number | undefined
}

/** One request. It can be repeated without further effect, because its body or path has an id. */
export interface HttpRequest {
  readonly method: 'GET' | 'POST'
  readonly path: string
  /** The response that the request is about. */
  readonly responseId: string
  /** The body, as JSON. */
  readonly body?: string
}

export interface HttpSettings {
  /** Address of the service, without a slash at its end. */
  readonly baseUrl: string
  readonly fetch: Fetch
  readonly token: TokenSource
  /** Time-out of one attempt, in ms. */
  readonly timeoutMs: number
  readonly retry: Retry
}

/** Sends requests to one service. */
export class Http {
  readonly #settings: HttpSettings

  constructor(settings: HttpSettings) {
    this.#settings = settings
  }

  /**
   * Send a request, again if that may help, and return the JSON body of the response.
   *
   * @param until - If given, there are as many attempts as fit before this time (ms since the epoch), at least one.
   * @throws Problem if the service answered with an error.
   * @throws Unreachable if it did not answer.
   */
  async request(request: HttpRequest, options: CallOptions = {}, until?: number): Promise<unknown> {
    const { retry } = this.#settings
    for (let attempt = 1; ; attempt++) {
      options.signal?.throwIfAborted()
      const result = await this.#attempt(request, options)
      if (!(result instanceof Failure)) return result
      const now = Date.now()
      const wait = waitMs(retry, attempt, result.retryAfter, now, Math.random())
      const last = until === undefined ? attempt >= retry.attempts : now + wait > until
      if (last || !result.retryable) throw result.error
      await sleep(wait, options.signal)
    }
  }

  /** Send a request once, so that it continues after the page was closed. Return whether the service took it. */
  async requestOnPageHide(request: HttpRequest): Promise<boolean> {
    const result = await this.#attempt(request, {}, true)
    return !(result instanceof Failure)
  }

  async #attempt(request: HttpRequest, options: CallOptions, keepalive = false): Promise<unknown> {
    const { baseUrl, fetch, timeoutMs } = this.#settings
    const url = baseUrl + request.path
    const limitMs = options.timeoutMs ?? timeoutMs
    const timeout = new AbortController()
    const abort = (): void => timeout.abort(options.signal?.reason)
    const timer = setTimeout(() => timeout.abort(new TimedOut(url, limitMs)), limitMs)
    options.signal?.addEventListener('abort', abort, { once: true })
    try {
      const init = await this.#init(request, timeout.signal, keepalive)
      const response = await fetch(url, init)
      // The time-out covers the body too.
      return readBody(response, await response.text(), `${request.method} ${url}`)
    } catch (error) {
      options.signal?.throwIfAborted()
      if (timeout.signal.aborted) return new Failure(timeout.signal.reason as TimedOut, true)
      if (error instanceof TokenFailed) return new Failure(error, true)
      return new Failure(new Unreachable(url, reasonOf(error), { cause: error }), true)
    } finally {
      clearTimeout(timer)
      options.signal?.removeEventListener('abort', abort)
    }
  }

  async #init(request: HttpRequest, signal: AbortSignal, keepalive: boolean): Promise<RequestInit> {
    const headers: Record<string, string> = { accept: 'application/json' }
    const token = await this.#token(request.responseId, signal)
    if (token) headers.authorization = `Bearer ${token}`
    const init: RequestInit = { method: request.method, headers, signal }
    if (request.body !== undefined) {
      headers['content-type'] = 'application/json'
      init.body = request.body
    }
    if (keepalive) init.keepalive = true
    return init
  }

  async #token(responseId: string, signal: AbortSignal): Promise<string | undefined> {
    // The time-out covers the app's own function too, which may ask a server for the token.
    const aborted = new Promise<never>((_, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true })
    })
    try {
      return await Promise.race([this.#settings.token(responseId), aborted])
    } catch (error) {
      if (signal.aborted) throw error
      throw new TokenFailed(`token() failed: ${reasonOf(error)}`, { cause: error })
    }
  }
}

/** Why an attempt failed, and whether another one may help. */
class Failure {
  constructor(
    readonly error: Error,
    readonly retryable: boolean,
    readonly retryAfter: string | null = null,
  ) {}
}

function readBody(response: Response, body: string, request: string): unknown {
  if (!response.ok) {
    const problem = problemOf(response.status, response.statusText, body, request)
    return new Failure(problem, isRetryable(response.status), response.headers.get('retry-after'))
  }
  try {
    return JSON.parse(body)
  } catch {
    const detail =
      `${request} did not answer like a Loopwright service (not JSON). Check the address, and that the client and ` +
      'the service have compatible versions.'
    return new Failure(new Unavailable(response.status, 'Unexpected response', detail, 'unexpected_response'), false)
  }
}

/** Return after `ms`, or reject with the signal's reason as soon as it is aborted. */
export async function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const abort = (): void => {
      clearTimeout(timer)
      reject(signal?.reason as Error)
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', abort)
      resolve()
    }, ms)
    signal?.addEventListener('abort', abort, { once: true })
  })
}

function reasonOf(error: unknown): string {
  // Node says only "fetch failed"; the cause names the address and the system's error.
  const cause = error instanceof Error ? (error.cause as { code?: unknown; message?: unknown } | undefined) : undefined
  return String(cause?.code ?? cause?.message ?? (error instanceof Error ? error.message : error))
}
