// What the widget sends when users change their mind. The element itself is tested in a browser: tests/e2e/test_widget.py.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Choice } from '../dist/widget/choice.js'

test('any sequence of clicks leaves the log with what the widget shows', () => {
  for (let round = 0; round < 500; round++) {
    const choice = new Choice()
    const log = new Map()
    for (let step = 0; step < 12; step++) {
      const event = choice.click(Math.random() < 0.5 ? 'up' : 'down')
      assert.ok(choice.unsent.has(event) || log.has(event.event_id))
      // The service takes some events and not others; the widget sends those again that are not superseded.
      for (const unsent of [...choice.unsent]) {
        if (Math.random() < 0.5) continue
        log.set(unsent.event_id, unsent)
        choice.unsent.delete(unsent)
      }
    }
    for (const unsent of choice.unsent) log.set(unsent.event_id, unsent)
    assert.equal(stated(log), choice.thumb)
  }
})

/** Return the thumb that events in this order leave: the newest one wins, unless it was retracted. */
function stated(log) {
  let thumb
  for (const event of log.values()) {
    if (event.kind === 'thumbs') thumb = event
    else if (thumb?.event_id === event.value) thumb = undefined
  }
  return thumb?.value
}

test('a correction keeps its id until its text changes', () => {
  const choice = new Choice()
  const first = choice.correct('a')
  assert.equal(choice.correct('a'), first)
  assert.notEqual(choice.correct('b').event_id, first.event_id)
  assert.equal(choice.unsent.size, 1, 'the superseded one is not sent any more')
})
