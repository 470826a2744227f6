// The client against the real feedback service, whose address is in LOOPWRIGHT_FEEDBACK_URL. Started by
// tests/integration/test_javascript_sdk.py, which then looks at what is in the log.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Conflict, Invalid, Loopwright, NotFound } from '../../dist/index.js'

const loop = new Loopwright()

test('every kind of feedback is accepted and has a receipt', async () => {
  const sent = [
    await loop.thumbsUp('js-kinds', 'ann', { tags: ['tag'], occurredAt: new Date() }),
    await loop.thumbsDown('js-kinds', 'bob', { choice: 1 }),
    await loop.rate('js-kinds', 'ann', 4),
    await loop.correct('js-kinds', 'ann', 'Né à Zürich 🇨🇭 in 1066.'),
    await loop.comment('js-kinds', 'ann', 'The year that it names is wrong: it was 1066.'),
    await loop.prefer('js-kinds', 'ann', { over: 'another answer' }),
    await loop.prefer('js-kinds', 'ann', { under: 1 }),
  ]
  sent.push(await loop.retract('js-kinds', 'ann', sent[0].eventId))
  for (const { eventId, status } of sent) {
    assert.equal(status, 'accepted')
    const receipt = await loop.receipt('js-kinds', eventId)
    assert.deepEqual([receipt.responseId, receipt.eventId, receipt.outcome], ['js-kinds', eventId, 'pending'])
    assert.equal(receipt.servingVersion ?? null, null)
  }
})

test('a repeated event is a duplicate, and another one under its id a conflict', async () => {
  const options = { eventId: 'js-1' }
  assert.equal((await loop.thumbsUp('js-same', 'ann', options)).status, 'accepted')
  assert.equal((await loop.thumbsUp('js-same', 'ann', options)).status, 'duplicate')
  await assert.rejects(loop.thumbsDown('js-same', 'ann', options), (error) => {
    assert.ok(error instanceof Conflict)
    assert.match(error.detail, /new event_id/)
    return true
  })
})

test('what is invalid is refused with a problem document that says what to do', async () => {
  await assert.rejects(loop.rate('js-bad', 'ann', 6), (error) => {
    assert.ok(error instanceof Invalid)
    assert.equal(error.status, 422)
    assert.match(error.detail, /value/)
    return true
  })
  await assert.rejects(loop.receipt('js-none', 'none'), NotFound)
})

test('responses are recorded with messages as OpenAI clients hold them', async () => {
  const recorded = await loop.recordResponse({
    responseId: 'js-recorded',
    version: 'gpt-x',
    messages: [
      { role: 'user', content: [{ type: 'text', text: 'How warm is Oslo?' }] },
      {
        role: 'assistant',
        content: null,
        tool_calls: [{ id: 'c1', type: 'function', function: { name: 'get', arguments: '{}' } }],
      },
      { role: 'tool', tool_call_id: 'c1', content: '7' },
    ],
    choices: [{ text: 'Seven degrees.', finishReason: 'stop' }],
    userId: 'ann',
    metadata: { app: 'docs' },
    usage: { promptTokens: 3, completionTokens: 4 },
    latencyMs: 12.5,
    createdAt: new Date(),
  })
  assert.deepEqual(recorded, { responseId: 'js-recorded', status: 'accepted' })
})

test('a thousand events in the background all arrive', async () => {
  const client = new Loopwright({ queue: { concurrency: 8 } })
  for (let n = 0; n < 1000; n++) {
    const userId = `user ${n % 50}`
    client.enqueue({ responseId: `js-many-${n % 10}`, userId, kind: 'thumbs', value: n % 2 ? 'up' : 'down' })
  }
  assert.deepEqual(await client.close(60_000), { delivered: 1000, failed: 0, pending: 0 })
})
