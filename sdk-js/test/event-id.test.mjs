import assert from 'node:assert/strict'
import { test } from 'node:test'
import { newEventId } from '../dist/index.js'

const UUID7 = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/

test('ids are UUIDv7 of their time, and all differ', () => {
  const ids = Array.from({ length: 5000 }, () => newEventId(1_767_225_600_123))
  assert.equal(new Set(ids).size, ids.length)
  for (const id of ids) {
    assert.match(id, UUID7)
    assert.equal(parseInt(id.replaceAll('-', '').slice(0, 12), 16), 1_767_225_600_123)
  }
})

test('ids sort by time', () => {
  const ids = [0, 1, 255, 256, 2 ** 31, 2 ** 32, 2 ** 40, Date.now(), 2 ** 48 - 1].map((now) => newEventId(now))
  assert.deepEqual([...ids].sort(), ids)
})

test('ids need no Web Crypto, which Node 18 does not have', () => {
  const descriptor = Object.getOwnPropertyDescriptor(globalThis, 'crypto')
  Object.defineProperty(globalThis, 'crypto', { value: undefined, configurable: true })
  try {
    assert.match(newEventId(), UUID7)
    assert.notEqual(newEventId(), newEventId())
  } finally {
    Object.defineProperty(globalThis, 'crypto', descriptor)
  }
})
