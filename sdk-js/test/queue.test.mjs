import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Conflict, Loopwright, QueueFull, Unavailable } from '../dist/index.js'
import { ACCEPTED, FAST, problem, scriptedServer } from './scripted-server.mjs'

const feedback = (n) => ({ responseId: `r-${n}`, userId: 'u', kind: 'thumbs', value: 'up' })

function clientOf(url, options = {}) {
  const failures = []
  const loop = new Loopwright({ feedbackUrl: url, retry: FAST, onError: (failure) => failures.push(failure), ...options })
  return { loop, failures }
}

test('events are sent in the background, each once, and flush waits for them', async (t) => {
  const { url, requests } = await scriptedServer(t, [ACCEPTED])
  const { loop, failures } = clientOf(url)
  const ids = Array.from({ length: 200 }, (_, n) => loop.enqueue(feedback(n)))
  assert.equal(requests.length, 0, 'enqueue does not wait')
  assert.deepEqual(await loop.flush(60_000), { delivered: 200, failed: 0, pending: 0 })
  assert.deepEqual(requests.map(({ body }) => body.event_id).sort(), [...ids].sort())
  assert.deepEqual(failures, [])
})

test('an outage that ends in time loses nothing', async (t) => {
  let calls = 0
  const { url, requests } = await scriptedServer(t, [() => (calls++ < 60 ? (calls % 2 ? 'reset' : problem(503)) : ACCEPTED)])
  const { loop, failures } = clientOf(url)
  const ids = Array.from({ length: 20 }, (_, n) => loop.enqueue(feedback(n)))
  assert.deepEqual(await loop.flush(60_000), { delivered: 20, failed: 0, pending: 0 })
  assert.ok(requests.length > 60)
  const seen = new Set(requests.map(({ body }) => body.event_id))
  assert.deepEqual([...seen].sort(), [...ids].sort(), 'retries keep the id')
  assert.deepEqual(failures, [])
})

test('what the service refuses is reported with its body, and stops nothing', async (t) => {
  const { url } = await scriptedServer(t, [({ body }) => (body.response_id === 'r-1' ? problem(409) : ACCEPTED)])
  const { loop, failures } = clientOf(url)
  const ids = [0, 1, 2].map((n) => loop.enqueue(feedback(n)))
  assert.deepEqual(await loop.flush(60_000), { delivered: 2, failed: 1, pending: 0 })
  assert.ok(failures[0].error instanceof Conflict)
  assert.deepEqual([failures[0].responseId, failures[0].path], ['r-1', '/v1/feedback'])
  assert.equal(JSON.parse(failures[0].body).event_id, ids[1])
})

test('an outage beyond the maximum age is reported for every event', async (t) => {
  const { url, requests } = await scriptedServer(t, [problem(503, 'c', { 'retry-after': '0' })])
  const { loop, failures } = clientOf(url, { queue: { maxAgeMs: 60, concurrency: 1 } })
  for (let n = 0; n < 5; n++) loop.enqueue(feedback(n))
  assert.deepEqual(await loop.flush(60_000), { delivered: 0, failed: 5, pending: 0 })
  const tried = new Set(requests.map(({ body }) => body.event_id))
  assert.ok(tried.size < 5, 'what waited behind it for too long is not tried any more')
  assert.ok(failures.every(({ error }) => error instanceof Unavailable))
  assert.equal(failures.length, 5)
})

test('a full queue refuses, by number and by size', async (t) => {
  const { url } = await scriptedServer(t, ['hang'])
  const few = clientOf(url, { queue: { maxItems: 2, maxAgeMs: 50 }, timeoutMs: 50 })
  few.loop.enqueue(feedback(0))
  few.loop.enqueue(feedback(1))
  assert.throws(() => few.loop.enqueue(feedback(2)), QueueFull)
  const small = clientOf(url, { queue: { maxSize: 1000 } }).loop
  const long = { ...feedback(0), kind: 'comment', value: 'x'.repeat(900) }
  assert.throws(() => small.enqueue(long), { name: 'QueueFull', message: /flush\(\)/ })
  await few.loop.flush(60_000)
  assert.ok(few.loop.enqueue(feedback(3)), 'there is space again')
  await few.loop.flush(60_000)
})

test('flush returns in time and says what still waits', async (t) => {
  const { url } = await scriptedServer(t, ['hang'])
  const { loop } = clientOf(url, { timeoutMs: 1000, queue: { maxAgeMs: 1 } })
  loop.enqueue(feedback(0))
  assert.deepEqual(await loop.flush(30), { delivered: 0, failed: 0, pending: 1 })
  assert.equal((await loop.close()).pending, 0)
})

test('a callback that throws does not stop the queue', async (t) => {
  const { url } = await scriptedServer(t, [problem(422), ACCEPTED])
  const error = t.mock.method(console, 'error', () => {})
  const onError = () => {
    throw new Error('mine')
  }
  const { loop } = clientOf(url, { onError, queue: { concurrency: 1 } })
  loop.enqueue(feedback(0))
  loop.enqueue(feedback(1))
  assert.deepEqual(await loop.flush(60_000), { delivered: 1, failed: 1, pending: 0 })
  assert.equal(error.mock.callCount(), 1)
})

test('what waits is sent with keepalive when the page is hidden, once', async (t) => {
  const listeners = {}
  const listen = (name, listener) => (listeners[name] = listener)
  Object.assign(globalThis, {
    window: {},
    document: { addEventListener: listen, visibilityState: 'hidden' },
    addEventListener: listen,
  })
  t.after(() => ['window', 'document', 'addEventListener'].forEach((name) => delete globalThis[name]))
  const sent = []
  const fetch = (_, init) => {
    sent.push(init)
    // The service hangs, except for what browsers send after the page was closed.
    return init.keepalive ? Promise.resolve(new Response('{}', { status: 202 })) : new Promise(() => {})
  }
  const { loop } = clientOf('http://127.0.0.1:1', { fetch, queue: { concurrency: 1 }, timeoutMs: 100 })
  for (let n = 0; n < 4; n++) loop.enqueue({ ...feedback(n), kind: 'comment', value: 'x'.repeat(20_000) })
  listeners.visibilitychange()
  await new Promise((resolve) => setTimeout(resolve, 20))
  const hidden = sent.filter(({ keepalive }) => keepalive)
  assert.equal(hidden.length, 2, 'browsers send at most 64 KiB')
  assert.equal((await loop.flush(1)).delivered, 2)
  await loop.close(1)
})
