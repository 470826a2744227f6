/**
 * Errors that the client raises.
 *
 * LoopwrightError
 * ├── Unreachable     no response from the service
 * │   └── TimedOut        no response within the time-out
 * ├── TokenFailed     the app's `token` function failed
 * ├── QueueFull       too many events wait to be sent
 * └── Problem         the service answered with an error
 *     ├── Invalid         the request is wrong (other 4xx)
 *     ├── Denied          401, 403
 *     ├── NotFound        404
 *     ├── Conflict        409
 *     ├── Overloaded      429, after all retries
 *     └── Unavailable     5xx, after all retries; or not a Loopwright service
 */

/** Base class of the errors. The message is for people and says what to do; programs use the class or `code`. */
export class LoopwrightError extends Error {
  /** Name of the class. Written out, because minifiers rename classes. */
  override readonly name: string = 'LoopwrightError'
  /** Stable identifier of the error, in snake case. */
  readonly code: string = 'error'
  /** Whether the same request may succeed later. */
  readonly retryable: boolean = false
}

/** The service sent no response: nothing listens at the address, the connection broke, or CORS forbids the request. */
export class Unreachable extends LoopwrightError {
  override readonly name: string = 'Unreachable'
  override readonly code: string = 'unreachable'
  override readonly retryable = true
  /** Address of the request. */
  readonly url: string

  constructor(url: string, reason: string, options?: ErrorOptions) {
    super(
      `${url} is not reachable (${reason}). Check that the feedback service is running, that feedbackUrl or ` +
        'LOOPWRIGHT_FEEDBACK_URL is its address, and in a browser that the service allows requests from this page.',
      options,
    )
    this.url = url
  }
}

/** The service did not answer within the time-out. The request may have been executed; a retry under its id is safe. */
export class TimedOut extends Unreachable {
  override readonly name = 'TimedOut'
  override readonly code = 'timed_out'

  constructor(url: string, timeoutMs: number, options?: ErrorOptions) {
    super(url, `no answer within ${timeoutMs} ms`, options)
  }
}

/** The `token` function that the app gave to the client failed; `cause` is its error. */
export class TokenFailed extends LoopwrightError {
  override readonly name = 'TokenFailed'
  override readonly code = 'token_failed'
  override readonly retryable = true
}

/** Too many events wait to be sent, so this one was not taken. Call `flush`, or look for the reason in `onError`. */
export class QueueFull extends LoopwrightError {
  override readonly name = 'QueueFull'
  override readonly code = 'queue_full'
  override readonly retryable = true
}

/** The problem document (RFC 9457) of a response. */
export interface ProblemDocument {
  readonly type?: string
  readonly title?: string
  readonly status?: number
  readonly detail?: string
  /** Stable identifier of the problem. */
  readonly code?: string
  readonly [extension: string]: unknown
}

/** The service answered with an error: a problem document, or any other response of status 400 or above. */
export class Problem extends LoopwrightError {
  override readonly name: string = 'Problem'
  override readonly code: string
  override readonly retryable: boolean = false
  /** HTTP status. */
  readonly status: number
  /** Short summary. */
  readonly title: string
  /** What went wrong and what to do. */
  readonly detail: string
  /** The document as the service sent it; empty if it sent none. */
  readonly document: ProblemDocument

  constructor(status: number, title: string, detail: string, code: string, document: ProblemDocument = {}) {
    super(detail && detail !== title ? `${title}: ${detail}` : title)
    this.status = status
    this.title = title
    this.detail = detail
    this.code = code
    this.document = document
  }
}

/** The request is invalid. Sending it again does not help. */
export class Invalid extends Problem {
  override readonly name = 'Invalid'
}

/** The caller is not authenticated, or not allowed to do this. */
export class Denied extends Problem {
  override readonly name = 'Denied'
}

/** No object has this id, or it does not exist yet. */
export class NotFound extends Problem {
  override readonly name = 'NotFound'
}

/** The id was already used for different content, which stays in force. Send the new content under a new id. */
export class Conflict extends Problem {
  override readonly name = 'Conflict'
}

/** Too many requests, even after waiting as long as the service asked. Nothing was stored. */
export class Overloaded extends Problem {
  override readonly name = 'Overloaded'
  override readonly retryable = true
}

/** The service cannot do its work now, for example because Kafka is down. Retries did not help. */
export class Unavailable extends Problem {
  override readonly name = 'Unavailable'
  override readonly retryable = true
}

const BY_STATUS: Readonly<Record<number, [kind: typeof Problem, code: string]>> = {
  401: [Denied, 'denied'],
  403: [Denied, 'denied'],
  404: [NotFound, 'not_found'],
  409: [Conflict, 'conflict'],
  429: [Overloaded, 'overloaded'],
}

/** Return the error for a response of status 400 or above, whether or not its body is a problem document. */
export function problemOf(status: number, statusText: string, body: string, request: string): Problem {
  const [kind, code] = BY_STATUS[status] ?? (status < 500 ? [Invalid, 'invalid'] : [Unavailable, 'unavailable'])
  const document = parseDocument(body)
  const title = text(document.title) || statusText || `HTTP ${status}`
  const detail = text(document.detail) || adviceFor(kind, status, request)
  return new kind(status, title, detail, text(document.code) || code, document)
}

function adviceFor(kind: typeof Problem, status: number, request: string): string {
  if (kind === Unavailable) {
    return `${request} failed with status ${status}. Try again later, or check the service's log.`
  }
  if (kind === NotFound) {
    return `${request} does not exist. Check the id, and that the address is that of the feedback service.`
  }
  return `${request} was rejected with status ${status}.`
}

function parseDocument(body: string): ProblemDocument {
  try {
    const document: unknown = JSON.parse(body)
    const isObject = typeof document === 'object' && document !== null && !Array.isArray(document)
    return isObject ? (document as ProblemDocument) : {}
  } catch {
    return {}
  }
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : ''
}
