/** Background queue: sends requests without making the app wait. Bounded in number, size and time. */

import { LoopwrightError, QueueFull } from './errors.js'
import { type Http, type HttpRequest, sleep } from './http.js'

/** How many bytes browsers send after a page was closed (`keepalive`), less space for headers. */
const MAX_PAGE_HIDE_BYTES = 60_000

/** Bounds of the queue. */
export interface QueueBounds {
  /** Maximum number of waiting requests. */
  readonly maxItems: number
  /** Maximum number of characters of their bodies. */
  readonly maxSize: number
  /** Requests that are sent at the same time. */
  readonly concurrency: number
  /** How long a request is tried, in ms. Then it is reported to `onError` and dropped. */
  readonly maxAgeMs: number
}

export const DEFAULT_BOUNDS: QueueBounds = {
  maxItems: 1000,
  maxSize: 8_000_000,
  concurrency: 4,
  maxAgeMs: 60_000,
}

/** What `flush` reports: counts since the client was created, and what still waits. */
export interface FlushReport {
  readonly delivered: number
  readonly failed: number
  readonly pending: number
}

interface Item {
  readonly request: HttpRequest
  readonly addedAt: number
  settled: boolean
}

/** A bounded queue in front of `Http`. */
export class BackgroundQueue {
  readonly #http: Http
  readonly #bounds: QueueBounds
  readonly #onError: (error: Error, request: HttpRequest) => void
  /** All items that are neither delivered nor dropped, in the order in which they were added. */
  readonly #pending = new Set<Item>()
  readonly #waiting: Item[] = []
  readonly #idle: (() => void)[] = []
  #workers = 0
  /** Why the newest request that was tried could not be delivered; undefined if it was, or was refused. */
  #lastError: Error | undefined
  #size = 0
  #delivered = 0
  #failed = 0

  constructor(http: Http, bounds: QueueBounds, onError: (error: Error, request: HttpRequest) => void) {
    this.#http = http
    this.#bounds = bounds
    this.#onError = onError
  }

  /**
   * Add a request. Returns at once.
   *
   * @throws QueueFull if the queue is full. The request was not added.
   */
  add(request: HttpRequest): void {
    const size = sizeOf(request)
    const { maxItems, maxSize, concurrency } = this.#bounds
    if (this.#pending.size >= maxItems || this.#size + size > maxSize) {
      throw new QueueFull(
        `${this.#pending.size} events (${this.#size} characters) wait to be sent, which is the limit of the queue. ` +
          'Check that the feedback service is reachable, wait with flush(), or raise queue.maxItems and queue.maxSize.',
      )
    }
    const item: Item = { request, addedAt: Date.now(), settled: false }
    this.#pending.add(item)
    this.#waiting.push(item)
    this.#size += size
    if (this.#workers < concurrency) void this.#work()
  }

  /**
   * Wait until every request that was added is delivered or dropped, for at most `timeoutMs`. Never rejects.
   */
  async flush(timeoutMs: number): Promise<FlushReport> {
    if (this.#pending.size > 0) {
      const timer = new AbortController()
      const idle = new Promise<void>((resolve) => this.#idle.push(resolve))
      await Promise.race([idle, sleep(timeoutMs, timer.signal).catch(() => undefined)])
      timer.abort()
    }
    return { delivered: this.#delivered, failed: this.#failed, pending: this.#pending.size }
  }

  /**
   * Send what waits so that it arrives even if the page is closed now. What browsers do not send any more stays in the
   * queue: the page may have been hidden only. What arrives twice counts once.
   */
  sendOnPageHide(): void {
    let size = 0
    for (const item of this.#pending) {
      size += sizeOf(item.request)
      if (size > MAX_PAGE_HIDE_BYTES) return
      void this.#http.requestOnPageHide(item.request).then((taken) => {
        if (taken) this.#settle(item, 'delivered')
      })
    }
  }

  async #work(): Promise<void> {
    this.#workers++
    for (let item = this.#waiting.shift(); item !== undefined; item = this.#waiting.shift()) {
      await this.#deliver(item)
    }
    this.#workers--
  }

  async #deliver(item: Item): Promise<void> {
    const deadline = item.addedAt + this.#bounds.maxAgeMs
    if (item.settled) return
    if (this.#lastError !== undefined && Date.now() > deadline) {
      // It waited too long behind others that could not be delivered. Trying each would double the outage.
      this.#fail(item, this.#lastError)
      return
    }
    try {
      await this.#http.request(item.request, {}, deadline)
      this.#lastError = undefined
      this.#settle(item, 'delivered')
    } catch (error) {
      this.#lastError = error instanceof LoopwrightError && error.retryable ? error : undefined
      this.#fail(item, error as Error)
    }
  }

  #fail(item: Item, error: Error): void {
    if (!this.#settle(item, 'failed')) return
    try {
      this.#onError(error, item.request)
    } catch (thrown) {
      // The app's own callback must not stop the queue.
      console.error('loopwright: onError failed:', thrown)
    }
  }

  #settle(item: Item, result: 'delivered' | 'failed'): boolean {
    if (item.settled) return false
    item.settled = true
    this.#pending.delete(item)
    this.#size -= sizeOf(item.request)
    if (result === 'delivered') this.#delivered++
    else this.#failed++
    if (this.#pending.size === 0) for (const resolve of this.#idle.splice(0)) resolve()
    return true
  }
}

function sizeOf(request: HttpRequest): number {
  return request.body?.length ?? 0
}
