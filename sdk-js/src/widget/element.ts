/**
 * `<loopwright-feedback>`: thumbs and "What should it have said?" below one answer. This module registers the element.
 *
 *     <script src="https://feedback.example.com/v1/widget.js" defer></script>
 *     <loopwright-feedback response-id="chatcmpl-..." user-id="u-17" token="lwt_..."></loopwright-feedback>
 */

import { Choice, type Thumb, type WidgetEvent } from './choice.js'
import { mayHelpLater, post } from './post.js'
import { STYLE } from './style.js'
import { ENGLISH, type Texts } from './texts.js'

const THUMB =
  'M7 10.5v10H4.5A1.5 1.5 0 0 1 3 19v-7a1.5 1.5 0 0 1 1.5-1.5zL11 3a3 3 0 0 1 3 3v3.5h4.6a2 2 0 0 1 2 2.3l-1.2 7a2 2 0 0 1-2 1.7H7'
const PENCIL = 'M4 20l1-4L16.5 4.5a2.1 2.1 0 0 1 3 3L8 19zM14.5 6.5l3 3'
const THUMBS: readonly Thumb[] = ['up', 'down']

/** Where the script was loaded from: the feedback service, unless the page serves the file itself. */
const script = document.currentScript as HTMLScriptElement | null
const SCRIPT_SERVICE = script?.src ? new URL('..', script.src).href : ''

const TEMPLATE =
  `<div role=group>${iconButton('up', THUMB, 'pressed')}${iconButton('down', THUMB, 'pressed')}` +
  `${iconButton('suggest', PENCIL, 'expanded')}<span role=status></span>` +
  '<button id=retry hidden></button></div><form hidden><label for=text></label>' +
  '<textarea id=text maxlength=32768 rows=3 dir=auto required></textarea>' +
  '<div><button id=cancel type=button></button><button id=send></button></div></form>'

/** The element. Events: `loopwright-feedback` after the service took an event, `loopwright-error` if it did not. */
export class FeedbackElement extends HTMLElement {
  static readonly observedAttributes = ['response-id', 'texts']
  /** Texts of all widgets of the page, for those that have no attribute `texts`. Set them before the first widget. */
  static texts: Partial<Texts> = {}

  #choice = new Choice()
  #texts = ENGLISH
  /** Events are sent one after the other, so that the last choice is the last one in the log. */
  #sending = Promise.resolve()
  readonly #root = this.attachShadow({ mode: 'open' })

  connectedCallback(): void {
    if (this.#root.firstChild) return
    // Adopted, because pages may forbid inline styles (Content-Security-Policy).
    const sheet = new CSSStyleSheet()
    sheet.replaceSync(STYLE)
    this.#root.adoptedStyleSheets = [sheet]
    this.#root.innerHTML = TEMPLATE
    for (const thumb of THUMBS) this.#part(thumb).onclick = () => this.#clickThumb(thumb)
    this.#part('suggest').onclick = () => this.#open(!!this.#form.hidden)
    this.#part('cancel').onclick = () => this.#open(false)
    this.#part('retry').onclick = () => this.#retry()
    this.#form.onsubmit = (event) => this.#submit(event)
    this.#form.onkeydown = (event) => this.#key(event)
    this.#localize()
  }

  attributeChangedCallback(name: string, before: string | null, now: string | null): void {
    if (!this.#root.firstChild || before === now) return
    if (name === 'texts') return this.#localize()
    this.#choice = new Choice()
    this.#form.reset()
    this.#show('')
    this.#showState(false)
  }

  #clickThumb(thumb: Thumb): void {
    this.#send(this.#choice.click(thumb))
    // A disliked answer is worth most with what it should have been.
    if (this.#choice.thumb === 'down') this.#open(true)
    else this.#showState(false)
  }

  #submit(event: Event): void {
    event.preventDefault()
    const text = this.#part<HTMLTextAreaElement>('text').value.trim()
    if (!text) return
    this.#open(false)
    this.#send(this.#choice.correct(text))
  }

  #key(event: KeyboardEvent): void {
    if (event.key === 'Escape') this.#open(false)
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) this.#form.requestSubmit()
  }

  #retry(): void {
    // The button disappears; the focus must not.
    this.#part('suggest').focus()
    for (const event of this.#choice.unsent) this.#send(event)
  }

  #send(event: WidgetEvent): void {
    const choice = this.#choice
    this.#show('')
    this.#sending = this.#sending.then(() => this.#deliver(choice, event))
  }

  async #deliver(choice: Choice, event: WidgetEvent): Promise<void> {
    // Superseded, or sent by an earlier click.
    if (!choice.unsent.has(event)) return
    const attribute = (name: string): string | null => this.getAttribute(name)
    const ids = { response_id: attribute('response-id'), user_id: attribute('user-id') ?? undefined }
    const service = (attribute('endpoint') ?? SCRIPT_SERVICE).replace(/\/$/, '')
    const answer = await post(`${service}/v1/feedback`, attribute('token'), JSON.stringify({ ...ids, ...event }))
    const isTaken = answer.status === 200 || answer.status === 202
    if (isTaken) choice.unsent.delete(event)
    if (choice === this.#choice) {
      const problem = mayHelpLater(answer.status) ? 'failed' : 'refused'
      this.#show(this.#texts[isTaken ? event.kind : problem], !isTaken)
    }
    const detail = { ...ids, ...event, ...answer }
    const name = isTaken ? 'loopwright-feedback' : 'loopwright-error'
    this.dispatchEvent(new CustomEvent(name, { bubbles: true, composed: true, detail }))
  }

  #show(text: string, isError = false): void {
    const status = this.#root.querySelector('span')!
    status.textContent = text
    status.className = isError ? 'error' : ''
    this.#part('retry').hidden = !isError
  }

  #open(isOpen: boolean): void {
    this.#showState(isOpen)
    this.#part(isOpen ? 'text' : 'suggest').focus()
  }

  #showState(isOpen: boolean): void {
    for (const thumb of THUMBS) this.#part(thumb).ariaPressed = `${this.#choice.thumb === thumb}`
    this.#part('suggest').ariaExpanded = `${isOpen}`
    this.#form.hidden = !isOpen
  }

  #localize(): void {
    const texts = { ...ENGLISH, ...FeedbackElement.texts, ...JSON.parse(this.getAttribute('texts') || '{}') }
    this.#texts = texts
    this.#root.querySelector('div')!.ariaLabel = texts.label
    this.#root.querySelector('label')!.textContent = texts.question
    for (const name of ['up', 'down', 'suggest']) this.#part(name).title = this.#part(name).ariaLabel = texts[name]
    for (const name of ['send', 'cancel', 'retry']) this.#part(name).textContent = texts[name]
  }

  get #form(): HTMLFormElement {
    return this.#root.querySelector('form')!
  }

  #part<T extends HTMLElement>(id: string): T {
    return this.#root.getElementById(id) as T
  }
}

function iconButton(id: string, path: string, state: string): string {
  return `<button id=${id} aria-${state}=false><svg viewBox="0 0 24 24" aria-hidden=true><path d="${path}"/></svg></button>`
}

if (!customElements.get('loopwright-feedback')) customElements.define('loopwright-feedback', FeedbackElement)
