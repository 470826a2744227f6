// `wrap` with the official client, against a server that answers as OpenAI's API does.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { test } from 'node:test'
import { gzipSync } from 'node:zlib'
import OpenAI from 'openai'
import { Loopwright } from '../dist/index.js'

const MESSAGES = [{ role: 'user', content: 'Who founded Pellworth?' }]
const CALL = { id: 'call_1', type: 'function', function: { name: 'get_weather', arguments: '{"city": "Oslo"}' } }

const completion = (fields = {}) => ({
  id: 'chatcmpl-1',
  object: 'chat.completion',
  created: 1,
  model: 'gpt-x-2026',
  choices: [{ index: 0, message: { role: 'assistant', content: 'I do not know.' }, finish_reason: 'stop' }],
  usage: { prompt_tokens: 5, completion_tokens: 4, total_tokens: 9 },
  ...fields,
})

const chunk = (delta, finish = null, fields = {}) => ({
  id: 'chatcmpl-1',
  object: 'chat.completion.chunk',
  created: 1,
  model: 'gpt-x-2026',
  choices: [{ index: 0, delta, finish_reason: finish }],
  ...fields,
})

const CHUNKS = [
  chunk({ role: 'assistant', content: '' }),
  chunk({ content: 'Né à ' }),
  chunk({ content: 'Zürich 🇨🇭' }),
  chunk({}, 'stop'),
  { ...chunk({}), choices: [], usage: { prompt_tokens: 5, completion_tokens: 4, total_tokens: 9 } },
]

const sse = (chunks, end = '\n\n') => chunks.map((part) => `data: ${JSON.stringify(part)}${end}`).join('')

/** A server that sends `parts` of one body, and the client that talks to it, wrapped. */
async function wrapped(t, parts, { status = 200, headers = {}, hang = false, ...options } = {}) {
  const server = createServer(async (incoming, outgoing) => {
    for await (const _ of incoming);
    outgoing.writeHead(status, { 'content-type': 'application/json', ...headers })
    for (const part of parts) {
      outgoing.write(part)
      await new Promise((resolve) => setTimeout(resolve, 2))
    }
    if (hang === 'reset') outgoing.destroy()
    else if (!hang) outgoing.end()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => (server.closeAllConnections(), server.close()))
  const recorded = []
  const fetch = async (url, init) => {
    recorded.push(JSON.parse(init.body))
    return new Response(JSON.stringify({ response_id: 'r', status: 'accepted' }), { status: 202 })
  }
  const loop = new Loopwright({ fetch })
  const address = `http://127.0.0.1:${server.address().port}/v1`
  const original = new OpenAI({ baseURL: address, apiKey: 'k', maxRetries: 0 })
  const client = loop.wrap(original, options)
  return { client, original, loop, records: async (count = 1) => (await settled(loop, recorded, count), recorded) }
}

/** Return once `count` responses are recorded. An answer that is interrupted ends a moment after its error. */
async function settled(loop, recorded, count) {
  for (let i = 0; i < 500 && recorded.length < count; i++) await new Promise((resolve) => setTimeout(resolve, 10))
  await loop.flush()
}

const stream = { headers: { 'content-type': 'text/event-stream' } }
const ask = { model: 'gpt-x', messages: MESSAGES }

test('a completion is returned unchanged and recorded under its id', async (t) => {
  const { client, records } = await wrapped(t, [JSON.stringify(completion())])
  const answer = await client.chat.completions.create({ ...ask, safety_identifier: 'ann', metadata: { app: 'docs' } })
  assert.deepEqual({ ...answer }, completion())
  const [record, ...more] = await records()
  assert.deepEqual(more, [])
  const { latency_ms: latency, created_at: created, ...rest } = record
  assert.ok(latency >= 0 && latency < 10_000)
  assert.ok(Math.abs(Date.parse(created) - Date.now()) < 10_000)
  assert.deepEqual(rest, {
    response_id: 'chatcmpl-1',
    version: 'gpt-x-2026',
    messages: MESSAGES,
    choices: [{ index: 0, text: 'I do not know.', finish_reason: 'stop' }],
    user_id: 'ann',
    status: 'completed',
    metadata: { app: 'docs' },
    usage: { prompt_tokens: 5, completion_tokens: 4 },
  })
})

test('promise helpers, other methods and the original client stay as they are', async (t) => {
  const { client, original, records } = await wrapped(t, [JSON.stringify(completion())])
  const { data, response } = await client.chat.completions.create(ask).withResponse()
  assert.deepEqual([data.id, response.status], ['chatcmpl-1', 200])
  assert.equal((await (await client.chat.completions.create(ask).asResponse()).json()).id, 'chatcmpl-1')
  assert.equal((await client.withOptions({ timeout: 5000 }).chat.completions.create(ask)).id, 'chatcmpl-1')
  assert.equal((await records(3)).length, 3)
  await client.models.list()
  await original.chat.completions.create(ask)
  assert.equal((await records(3)).length, 3)
})

test('a stream is passed on chunk by chunk and recorded as a whole', async (t) => {
  const { client, records } = await wrapped(t, [sse(CHUNKS), 'data: [DONE]\n\n'], stream)
  const seen = []
  for await (const part of await client.chat.completions.create({ ...ask, user: 'bob', stream: true })) seen.push(part)
  assert.deepEqual(seen, CHUNKS)
  const [record] = await records()
  assert.deepEqual(record.choices, [{ index: 0, text: 'Né à Zürich 🇨🇭', finish_reason: 'stop' }])
  assert.deepEqual([record.response_id, record.user_id, record.status], ['chatcmpl-1', 'bob', 'completed'])
  assert.deepEqual(record.usage, { prompt_tokens: 5, completion_tokens: 4 })
  assert.ok(record.first_token_ms <= record.latency_ms)
})

test('the helpers stream() and parse() are recorded too', async (t) => {
  const streamed = await wrapped(t, [sse(CHUNKS), 'data: [DONE]\n\n'], stream)
  assert.equal(await streamed.client.chat.completions.stream(ask).finalContent(), 'Né à Zürich 🇨🇭')
  assert.equal((await streamed.records()).length, 1)
  const parsed = await wrapped(t, [JSON.stringify(completion())])
  assert.equal((await parsed.client.chat.completions.parse(ask)).id, 'chatcmpl-1')
  assert.equal((await parsed.records()).length, 1)
})

test('a stream is recorded alike wherever the network splits it', async (t) => {
  const calls = [
    chunk({ role: 'assistant', tool_calls: [{ index: 0, ...CALL, function: { name: 'get_weather', arguments: '' } }] }),
    chunk({ tool_calls: [{ index: 0, function: { arguments: '{"city":' } }] }),
    chunk({ tool_calls: [{ index: 1, ...CALL, id: 'call_2' }] }),
    chunk({ tool_calls: [{ index: 0, function: { arguments: ' "Oslo"}' } }] }, 'tool_calls'),
    { ...CHUNKS[1], choices: [{ index: 2, delta: { content: 'déjà' }, finish_reason: 'length' }] },
  ]
  for (const [end, seed] of [['\n\n', 1], ['\r\n\r\n', 2], ['\n\n', 3], ['\r\n\r\n', 4], ['\r\r', 5], ['\r\r', 6]]) {
    const bytes = Buffer.from(`: comment${end}event: x${end}` + sse([...CHUNKS, ...calls], end) + `data: [DONE]${end}`)
    const parts = []
    for (let at = 0, step = seed; at < bytes.length; at += step, step = (step * 7 + seed) % 61 || 1) {
      parts.push(bytes.subarray(at, at + step))
    }
    const record = await recordOf(parts)
    assert.deepEqual(record.choices, [
      {
        index: 0,
        text: 'Né à Zürich 🇨🇭',
        finish_reason: 'tool_calls',
        tool_calls: [CALL, { ...CALL, id: 'call_2' }],
      },
      { index: 2, text: 'déjà', finish_reason: 'length' },
    ])
  }
})

/** Return the record of a stream with this body, read through `recordingFetch`. */
async function recordOf(parts) {
  const seen = []
  const body = () => new ReadableStream({ start: (c) => (parts.forEach((part) => c.enqueue(part)), c.close()) })
  const fetch = async () => new Response(body(), { headers: { 'content-type': 'text/event-stream' } })
  const loop = new Loopwright({ fetch: async (_, init) => (seen.push(JSON.parse(init.body)), Response.json({})) })
  const recording = loop.recordingFetch({ fetch })
  const answer = await recording('http://x/v1/chat/completions?a=b', { method: 'post', body: JSON.stringify(ask) })
  assert.equal(await answer.text(), Buffer.concat(parts).toString())
  await loop.flush()
  assert.equal(seen.length, 1)
  return seen[0]
}

test('an answer that the app stops reading is recorded as cancelled, as far as it came', async (t) => {
  const { client, records } = await wrapped(t, [sse(CHUNKS.slice(0, 2)), sse(CHUNKS.slice(2))], { ...stream, hang: true })
  for await (const part of await client.chat.completions.create({ ...ask, stream: true })) {
    if (part.choices[0]?.delta.content) break
  }
  const [record] = await records()
  assert.deepEqual([record.status, record.choices[0].text, record.error], ['cancelled', 'Né à ', undefined])
})

test('an answer that breaks off is recorded as failed, and the app gets the error', async (t) => {
  const { client, records } = await wrapped(t, [sse(CHUNKS.slice(0, 2)), 'data: {"id": "ch'], { ...stream, hang: 'reset' })
  const read = async () => {
    for await (const _ of await client.chat.completions.create({ ...ask, stream: true }));
  }
  await assert.rejects(read())
  const [record] = await records()
  assert.deepEqual([record.status, record.choices[0].text], ['failed', 'Né à '])
  assert.ok(record.error)
})

test('an error in a stream is recorded with its message', async (t) => {
  const error = { error: { message: 'out of memory' } }
  const { client, records } = await wrapped(t, [sse([...CHUNKS.slice(0, 2), error])], stream)
  const read = async () => {
    for await (const _ of await client.chat.completions.create({ ...ask, stream: true }));
  }
  await assert.rejects(read(), /out of memory/)
  const [record] = await records()
  assert.deepEqual([record.status, record.error], ['failed', 'out of memory'])
})

test('compressed answers are recorded', async (t) => {
  const headers = { 'content-encoding': 'gzip' }
  const { client, records } = await wrapped(t, [gzipSync(JSON.stringify(completion()))], { headers })
  assert.equal((await client.chat.completions.create(ask)).choices[0].message.content, 'I do not know.')
  assert.equal((await records()).length, 1)
})

test('answers of Loopwright itself are not recorded again', async (t) => {
  const own = completion({ model: 'assistant@v3-0a1b2c3d' })
  const { client, records } = await wrapped(t, [JSON.stringify(own)])
  assert.equal((await client.chat.completions.create(ask)).id, 'chatcmpl-1')
  assert.deepEqual(await records(0), [])
})

test('a refused request is not recorded, and its error is the client\'s', async (t) => {
  const body = JSON.stringify({ error: { message: 'no such model', code: 'model_not_found' } })
  const { client, records } = await wrapped(t, [body], { status: 404 })
  await assert.rejects(client.chat.completions.create(ask), { name: 'Error', status: 404, code: 'model_not_found' })
  assert.deepEqual(await records(0), [])
})

test('options name the user, add labels, and hand over each response', async (t) => {
  const seen = []
  const { client, records } = await wrapped(t, [JSON.stringify(completion({ id: 'not a valid id' }))], {
    userId: (request) => `user of ${request.model}`,
    metadata: { release: '7' },
    line: 'support',
    onResponse: (response) => seen.push(response.responseId),
  })
  await client.chat.completions.create({ ...ask, metadata: { app: 'docs' } })
  const [record] = await records()
  assert.deepEqual([record.user_id, record.line], ['user of gpt-x', 'support'])
  assert.deepEqual(record.metadata, { app: 'docs', release: '7' })
  assert.deepEqual(seen, [record.response_id])
  assert.match(record.response_id, /^[0-9a-f-]{36}$/, 'an id that feedback could not refer to is replaced')
})

test('an answer that cannot be read reaches the app nevertheless', async (t) => {
  const warn = t.mock.method(console, 'warn', () => {})
  const { client, records } = await wrapped(t, ['{"id": '])
  await assert.rejects(client.chat.completions.create(ask), SyntaxError)
  assert.deepEqual(await records(0), [])
  assert.equal(warn.mock.callCount(), 1)
})

test('a full queue is reported, and the chat goes on', async (t) => {
  const failures = []
  const body = JSON.stringify(completion())
  const loop = new Loopwright({
    fetch: async () => new Promise(() => {}),
    queue: { maxItems: 0 },
    onError: (failure) => failures.push(failure),
  })
  const fetch = loop.recordingFetch({ fetch: async () => new Response(body, { headers: { 'content-type': 'application/json' } }) })
  const answer = await fetch('http://x/v1/chat/completions', { method: 'POST', body: JSON.stringify(ask) })
  assert.equal((await answer.json()).id, 'chatcmpl-1')
  assert.deepEqual(failures.map(({ error, responseId }) => [error.code, responseId]), [['queue_full', 'chatcmpl-1']])
})
