/** Retry policy: which requests are sent again, and after how long. No I/O; `http.ts` waits. */

/** Retry policy. Waits double with each attempt, with jitter. A `Retry-After` of the service takes precedence. */
export interface Retry {
  /** Maximum number of attempts, including the first. */
  readonly attempts: number
  /** Longest wait before the second attempt, in ms. */
  readonly firstWaitMs: number
  /** Longest wait before any attempt, in ms. It also limits `Retry-After`. */
  readonly longestWaitMs: number
}

export const DEFAULT_RETRY: Retry = { attempts: 6, firstWaitMs: 250, longestWaitMs: 15_000 }

/**
 * Statuses after which a request is sent again; 502 and 504 come from proxies. The request may have been executed
 * nevertheless: every request has an id, so it counts once.
 */
const RETRYABLE_STATUSES: ReadonlySet<number> = new Set([429, 502, 503, 504])

/** Return whether a response of this status may be followed by another attempt. */
export function isRetryable(status: number): boolean {
  return RETRYABLE_STATUSES.has(status)
}

/**
 * Return the wait before the next attempt, in ms.
 *
 * @param attempt - Number of attempts so far, from 1.
 * @param retryAfter - The response's `Retry-After` header, or null.
 * @param now - Current time, in ms since the epoch.
 * @param random - A number from 0 to 1 that spreads the waits of several clients.
 */
export function waitMs(retry: Retry, attempt: number, retryAfter: string | null, now: number, random: number): number {
  const requested = retryAfterMs(retryAfter, now)
  if (requested !== null) return Math.min(requested, retry.longestWaitMs)
  const longest = Math.min(retry.firstWaitMs * 2 ** (attempt - 1), retry.longestWaitMs)
  return longest * (0.5 + random / 2)
}

/** Return the wait that a `Retry-After` header asks for, in ms, or null if it is missing or unreadable. */
export function retryAfterMs(value: string | null, now: number): number | null {
  const trimmed = value?.trim() ?? ''
  if (/^\d+$/.test(trimmed)) return Number(trimmed) * 1000
  // Only HTTP dates: `Date.parse` would also read a negative number as a year.
  const time = /^[A-Za-z]{3},/.test(trimmed) ? Date.parse(trimmed) : Number.NaN
  return Number.isNaN(time) ? null : Math.max(0, time - now)
}
