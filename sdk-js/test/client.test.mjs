import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  Conflict,
  Denied,
  Invalid,
  Loopwright,
  LoopwrightError,
  NotFound,
  Overloaded,
  Problem,
  TimedOut,
  TokenFailed,
  Unavailable,
  Unreachable,
} from '../dist/index.js'
import { ACCEPTED, FAST, problem, scriptedServer } from './scripted-server.mjs'

async function clientOf(t, answers, options = {}) {
  const server = await scriptedServer(t, answers)
  return { ...server, loop: new Loopwright({ feedbackUrl: `${server.url}/`, retry: FAST, ...options }) }
}

for (const [method, args, kind, value] of [
  ['thumbsUp', [], 'thumbs', 'up'],
  ['thumbsDown', [], 'thumbs', 'down'],
  ['rate', [4], 'rating', 4],
  ['correct', ['Wellington \u{1f1f3}\u{1f1ff}'], 'correction', 'Wellington \u{1f1f3}\u{1f1ff}'],
  ['comment', ['too long'], 'comment', 'too long'],
  ['prefer', [{ over: 'another answer' }], 'preference', { over: 'another answer' }],
  ['prefer', [{ under: 1 }], 'preference', { under: 1 }],
  ['retract', ['e-1'], 'retract', 'e-1'],
]) {
  test(`${method} sends ${kind} ${JSON.stringify(value)}`, async (t) => {
    const { loop, requests } = await clientOf(t, [ACCEPTED])
    const accepted = await loop[method]('r-1', 'ann', ...args, { choice: 2, tags: ['x'], line: 'other' })
    assert.deepEqual(accepted, { eventId: 'e', status: 'accepted', actionable: true, hint: null })
    const { event_id, ...body } = requests[0].body
    assert.match(event_id, /^[0-9a-f-]{36}$/)
    assert.deepEqual(body, { response_id: 'r-1', user_id: 'ann', kind, value, choice: 2, tags: ['x'], line: 'other' })
    assert.deepEqual([requests[0].method, requests[0].url], ['POST', '/v1/feedback'])
    assert.equal(requests[0].headers['content-type'], 'application/json')
  })
}

test('a time is sent in RFC 3339', async (t) => {
  const { loop, requests } = await clientOf(t, [ACCEPTED])
  await loop.thumbsUp('r', 'u', { occurredAt: new Date(0), eventId: 'mine' })
  assert.equal(requests[0].body.occurred_at, '1970-01-01T00:00:00.000Z')
  assert.equal(requests[0].body.event_id, 'mine')
})

test('a response is recorded with everything that was given', async (t) => {
  const { loop, requests } = await clientOf(t, [{ body: { response_id: 'r', status: 'accepted' } }])
  const messages = [{ role: 'user', content: [{ type: 'text', text: 'hi' }] }]
  const recorded = await loop.recordResponse({
    responseId: 'r',
    version: 'gpt-x',
    messages,
    choices: ['a', 'b'].map((text) => ({ text, finishReason: 'stop' })),
    userId: 'ann',
    metadata: { app: 'docs' },
    usage: { promptTokens: 3, completionTokens: 5 },
    latencyMs: 12.5,
    firstTokenMs: 2,
    createdAt: new Date(0),
    line: 'other',
  })
  assert.deepEqual(recorded, { responseId: 'r', status: 'accepted' })
  assert.deepEqual(requests[0].body, {
    response_id: 'r',
    version: 'gpt-x',
    messages,
    choices: [
      { index: 0, text: 'a', finish_reason: 'stop' },
      { index: 1, text: 'b', finish_reason: 'stop' },
    ],
    user_id: 'ann',
    metadata: { app: 'docs' },
    usage: { prompt_tokens: 3, completion_tokens: 5 },
    latency_ms: 12.5,
    first_token_ms: 2,
    created_at: '1970-01-01T00:00:00.000Z',
    line: 'other',
  })
})

test('a receipt is read with its ids quoted, and keeps fields that are new', async (t) => {
  const body = { response_id: 'a/b', event_id: 'c?d', outcome: 'batched', serving_version: 'v', new_field: 1 }
  const { loop, requests } = await clientOf(t, [{ status: 200, body }])
  const receipt = await loop.receipt('a/b', 'c?d%')
  assert.equal(requests[0].url, '/v1/feedback/a%2Fb/c%3Fd%25')
  assert.deepEqual([receipt.outcome, receipt.servingVersion, receipt.newField], ['batched', 'v', 1])
  await assert.rejects(loop.receipt('.', 'e'), TypeError)
})

for (const [status, kind] of [
  [400, Invalid],
  [401, Denied],
  [403, Denied],
  [404, NotFound],
  [409, Conflict],
  [413, Invalid],
  [422, Invalid],
  [429, Overloaded],
  [500, Unavailable],
  [503, Unavailable],
]) {
  test(`status ${status} rejects with ${kind.name} and its problem document`, async (t) => {
    const { loop } = await clientOf(t, [problem(status)])
    await assert.rejects(loop.thumbsUp('r', 'u'), (error) => {
      assert.ok(error instanceof kind && error instanceof Problem && error instanceof LoopwrightError)
      assert.deepEqual([error.status, error.code, error.title, error.detail], [status, 'some_code', 'A title', 'what to do'])
      assert.equal(error.message, 'A title: what to do')
      assert.equal(error.document.extra, 7)
      assert.equal(error.name, kind.name)
      return true
    })
  })
}

test('an error that is no problem document says what to do, too', async (t) => {
  const { loop } = await clientOf(t, [{ status: 404, body: '<html>' }])
  await assert.rejects(loop.thumbsUp('r', 'u'), { name: 'NotFound', code: 'not_found', message: /Check the id/ })
})

test('a success that is not JSON is no Loopwright service', async (t) => {
  const { loop } = await clientOf(t, [{ status: 200, body: '<html>' }])
  await assert.rejects(loop.thumbsUp('r', 'u'), { name: 'Unavailable', code: 'unexpected_response' })
})

for (const fault of [problem(503), problem(429), { status: 502, body: 'x' }, { status: 504, body: 'x' }, 'reset']) {
  test(`an event is sent again after ${fault.status ?? fault}, under its id`, async (t) => {
    const { loop, requests } = await clientOf(t, [fault, fault, ACCEPTED])
    await loop.thumbsUp('r', 'u')
    assert.equal(requests.length, 3)
    assert.equal(new Set(requests.map(({ body }) => body.event_id)).size, 1)
  })
}

for (const status of [400, 401, 404, 409, 422, 500]) {
  test(`an event is not sent again after ${status}`, async (t) => {
    const { loop, requests } = await clientOf(t, [problem(status)])
    await assert.rejects(loop.thumbsUp('r', 'u'))
    assert.equal(requests.length, 1)
  })
}

test('retries end after the last attempt', async (t) => {
  const { loop, requests } = await clientOf(t, [problem(503)])
  await assert.rejects(loop.thumbsUp('r', 'u'), Unavailable)
  assert.equal(requests.length, FAST.attempts)
})

test('Retry-After is waited for', async (t) => {
  const { loop, requests } = await clientOf(t, [problem(503, 'c', { 'retry-after': '1' }), ACCEPTED], {
    retry: { firstWaitMs: 1 },
  })
  await loop.thumbsUp('r', 'u')
  assert.ok(requests[1].at - requests[0].at >= 990)
})

test('a hanging service is a TimedOut after every attempt', async (t) => {
  let calls = 0
  const counted = (...request) => (calls++, fetch(...request))
  const { loop } = await clientOf(t, ['hang'], { timeoutMs: 40, fetch: counted })
  await assert.rejects(loop.thumbsUp('r', 'u'), (error) => {
    assert.ok(error instanceof TimedOut && error instanceof Unreachable)
    assert.match(error.message, /no answer within 40 ms/)
    return true
  })
  assert.equal(calls, FAST.attempts)
})

test('no service is an Unreachable that names the address and the setting', async () => {
  const loop = new Loopwright({ feedbackUrl: 'http://127.0.0.1:9', retry: { attempts: 1 } })
  await assert.rejects(loop.thumbsUp('r', 'u'), { name: 'Unreachable', message: /127\.0\.0\.1:9.*LOOPWRIGHT_FEEDBACK_URL/ })
})

for (const answer of ['hang', problem(503, 'c', { 'retry-after': '15' })]) {
  test(`a signal stops the call while it waits (${answer.status ?? answer})`, async (t) => {
    const { loop } = await clientOf(t, [answer], { retry: {} })
    const controller = new AbortController()
    const call = loop.thumbsUp('r', 'u', { signal: controller.signal })
    setTimeout(() => controller.abort(new Error('the user left')), 60)
    const started = Date.now()
    await assert.rejects(call, { message: 'the user left' })
    assert.ok(Date.now() - started < 10_000)
    await assert.rejects(loop.thumbsUp('r', 'u', { signal: controller.signal }), { message: 'the user left' })
  })
}

test('the API key is sent as a bearer token, and a browser token in its place', async (t) => {
  const { loop, url, requests } = await clientOf(t, [ACCEPTED], { apiKey: 'lw_key' })
  await loop.thumbsUp('r', 'u')
  const asked = []
  const token = async (responseId) => (asked.push(responseId), `lwt_${responseId}`)
  await new Loopwright({ feedbackUrl: url, apiKey: 'lw_key', token }).thumbsUp('r-2', 'u')
  await new Loopwright({ feedbackUrl: url }).thumbsUp('r', 'u')
  assert.deepEqual(asked, ['r-2'])
  const sent = requests.map(({ headers }) => headers.authorization)
  assert.deepEqual(sent, ['Bearer lw_key', 'Bearer lwt_r-2', undefined])
})

test('address and key come from the environment', async (t) => {
  const { url, requests } = await scriptedServer(t, [ACCEPTED])
  Object.assign(process.env, { LOOPWRIGHT_FEEDBACK_URL: url, LOOPWRIGHT_API_KEY: 'lw_env' })
  t.after(() => ['LOOPWRIGHT_FEEDBACK_URL', 'LOOPWRIGHT_API_KEY'].forEach((name) => delete process.env[name]))
  await new Loopwright().thumbsUp('r', 'u')
  assert.equal(requests[0].headers.authorization, 'Bearer lw_env')
})

test('an API key in a page is refused', (t) => {
  Object.assign(globalThis, { window: {}, document: { addEventListener() {} }, addEventListener() {} })
  t.after(() => ['window', 'document', 'addEventListener'].forEach((name) => delete globalThis[name]))
  assert.throws(() => new Loopwright({ apiKey: 'lw_key' }), { name: 'TypeError', message: /browser token/ })
  assert.ok(new Loopwright({ token: 'lwt_1' }))
})

test('a token function that fails or hangs is an error with its cause', async (t) => {
  const broken = async () => {
    throw new Error('no session')
  }
  const { loop, requests } = await clientOf(t, [ACCEPTED], { token: broken })
  await assert.rejects(loop.thumbsUp('r', 'u'), (error) => {
    assert.ok(error instanceof TokenFailed)
    assert.equal(error.cause.message, 'no session')
    return true
  })
  const hanging = new Loopwright({ token: () => new Promise(() => {}), timeoutMs: 20, retry: { attempts: 1 } })
  await assert.rejects(hanging.thumbsUp('r', 'u'), TimedOut)
  assert.equal(requests.length, 0)
})
