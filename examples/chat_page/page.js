// The chat page: asks, shows the answer as it comes, a widget below it, and the receipt of what the user said.
const log = document.getElementById('log')
const form = document.getElementById('ask')
const question = document.getElementById('question')
const messages = []
const FINAL = new Set(['serving', 'superseded', 'duplicate', 'retracted', 'applied_retract', 'tally_only', 'refused'])
const POLL_MS = 2000

form.addEventListener('submit', async (event) => {
  event.preventDefault()
  const content = question.value.trim()
  if (content === '') return
  question.value = ''
  messages.push({ role: 'user', content })
  add('p', 'own', log).textContent = content
  form.querySelector('button').disabled = true
  await answer()
  form.querySelector('button').disabled = false
  question.focus()
})

question.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
  event.preventDefault()
  form.requestSubmit()
})

async function answer() {
  const card = add('article', 'answer waiting', log)
  const text = add('p', 'text', card)
  try {
    for await (const part of lines('/api/chat', { messages })) {
      if (part.text) text.textContent += part.text
      if (part.error) throw new Error(part.error)
      if (part.response_id) addWidget(card, part.response_id)
    }
    messages.push({ role: 'assistant', content: text.textContent })
  } catch (error) {
    messages.pop()
    text.textContent = error.message
  }
  card.classList.remove('waiting')
  card.scrollIntoView({ block: 'nearest' })
}

/** Post a body, and yield the JSON lines of the answer. */
async function* lines(path, body) {
  const headers = { 'content-type': 'application/json' }
  const response = await fetch(path, { method: 'POST', headers, body: JSON.stringify(body) })
  if (!response.ok) throw new Error(`The server answered ${response.status}. Reload the page and try again.`)
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const complete = (rest + part.value).split('\n')
    rest = complete.pop()
    for (const line of complete) yield JSON.parse(line)
  }
}

function addWidget(card, responseId) {
  const widget = document.createElement('loopwright-feedback')
  widget.setAttribute('response-id', responseId)
  widget.addEventListener('loopwright-feedback', ({ detail }) => showReceipt(card, detail))
  // The field for a correction opens below the thumbs, maybe out of sight.
  widget.addEventListener('focusin', () => widget.scrollIntoView({ block: 'nearest' }))
  card.append(widget)
}

/** Follow the newest event of an answer until its outcome is final. */
async function showReceipt(card, { response_id: responseId, event_id: eventId }) {
  const line = card.querySelector('.receipt') ?? add('p', 'receipt', card)
  line.dataset.event = eventId
  line.setAttribute('role', 'status')
  const query = new URLSearchParams({ response_id: responseId, event_id: eventId })
  for (;;) {
    const response = await fetch(`/api/receipt?${query}`)
    if (line.dataset.event !== eventId) return
    if (response.ok) {
      const { stage, detail } = await response.json()
      show(line, stage, detail)
      if (FINAL.has(stage)) return
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS))
  }
}

function show(line, stage, detail) {
  const text = `Receipt: ${stage}`
  // Screen readers repeat what is written again, so only changes are.
  if (line.textContent === `${text}. ${detail}`) return
  line.replaceChildren()
  add('b', '', line).textContent = text
  line.append(`. ${detail}`)
}

function add(tag, className, parent) {
  const element = document.createElement(tag)
  element.className = className
  parent.append(element)
  return element
}
