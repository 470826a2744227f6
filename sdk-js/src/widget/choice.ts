/** What a user has stated about one answer, and what to send when they change their mind. No I/O. */

/** A feedback event, without the ids of response and user. */
export interface WidgetEvent {
  readonly event_id: string
  readonly kind: 'thumbs' | 'correction' | 'retract'
  readonly value: string
}

export type Thumb = 'up' | 'down'

/**
 * The user's thumb and correction.
 *
 * An event keeps its id until the service has taken it, so clicking again while it is sent or after an error sends the same
 * event. Another choice is a new event, which supersedes the earlier one; the same thumb once more retracts it.
 */
export class Choice {
  thumb: Thumb | undefined
  #thumbEvent: WidgetEvent | undefined
  #correction: WidgetEvent | undefined
  /** Events that the service has not taken yet, without those that are superseded. */
  readonly unsent = new Set<WidgetEvent>()

  /** Return the event to send for a click on a thumb. */
  click(thumb: Thumb): WidgetEvent {
    const last = this.#thumbEvent
    if (last === undefined || this.thumb !== thumb) {
      this.thumb = thumb
      return (this.#thumbEvent = this.#replace(last, 'thumbs', thumb))
    }
    if (this.unsent.has(last)) return last
    this.thumb = undefined
    return (this.#thumbEvent = this.#replace(last, 'retract', last.event_id))
  }

  /** Return the event to send for a correction. */
  correct(text: string): WidgetEvent {
    if (this.#correction?.value === text) return this.#correction
    return (this.#correction = this.#replace(this.#correction, 'correction', text))
  }

  #replace(last: WidgetEvent | undefined, kind: WidgetEvent['kind'], value: string): WidgetEvent {
    if (last !== undefined) this.unsent.delete(last)
    const event = { event_id: newId(), kind, value }
    this.unsent.add(event)
    return event
  }
}

/** Return 32 random hexadecimal digits. Shorter than a UUID's code; `crypto.randomUUID` is missing on pages without TLS. */
function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => (byte + 256).toString(16).slice(1)).join('')
}
