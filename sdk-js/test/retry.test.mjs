import assert from 'node:assert/strict'
import { test } from 'node:test'
import { DEFAULT_RETRY, isRetryable, retryAfterMs, waitMs } from '../dist/retry.js'

const NOW = Date.UTC(2026, 0, 1)

test('waits double with each attempt, up to the longest', () => {
  const waits = [1, 2, 3, 4, 5, 6, 7, 8, 30].map((attempt) => waitMs(DEFAULT_RETRY, attempt, null, NOW, 1))
  assert.deepEqual(waits, [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000])
})

test('every wait is between half of the longest one and all of it', () => {
  for (let i = 0; i < 1000; i++) {
    const retry = { attempts: 9, firstWaitMs: 1 + Math.random() * 1000, longestWaitMs: 1 + Math.random() * 60_000 }
    const attempt = 1 + Math.floor(Math.random() * 20)
    const longest = Math.min(retry.firstWaitMs * 2 ** (attempt - 1), retry.longestWaitMs)
    const wait = waitMs(retry, attempt, null, NOW, Math.random())
    assert.ok(wait >= longest / 2 && wait <= longest)
  }
})

test('Retry-After takes precedence, within the longest wait', () => {
  assert.equal(waitMs(DEFAULT_RETRY, 1, '3', NOW, 0.5), 3000)
  assert.equal(waitMs(DEFAULT_RETRY, 1, '0', NOW, 0.5), 0)
  assert.equal(waitMs(DEFAULT_RETRY, 1, '86400', NOW, 0.5), DEFAULT_RETRY.longestWaitMs)
})

for (const [header, expected] of [
  [null, null],
  ['', null],
  ['  7 ', 7000],
  ['-1', null],
  ['1.5', null],
  ['soon', null],
  ['Thu, 01 Jan 2026 00:00:05 GMT', 5000],
  ['Wed, 31 Dec 2025 00:00:00 GMT', 0],
  ['Xxx, not a date', null],
]) {
  test(`Retry-After ${JSON.stringify(header)} means ${expected}`, () => assert.equal(retryAfterMs(header, NOW), expected))
}

test('only statuses after which a repetition may help are retried', () => {
  const retried = Array.from({ length: 200 }, (_, i) => 400 + i).filter(isRetryable)
  assert.deepEqual(retried, [429, 502, 503, 504])
})
