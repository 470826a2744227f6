// An HTTP server that answers as a test says, and keeps the requests that it received.
import { once } from 'node:events'
import { createServer } from 'node:http'

/**
 * Start a server for one test.
 *
 * `answers` are given in turn; the last one is repeated. An answer is `{ status, headers, body }`, the string 'hang' (no
 * answer), the string 'reset' (a broken connection), or a function of the request that returns one of them.
 */
export async function scriptedServer(t, answers) {
  const requests = []
  const server = createServer(async (incoming, outgoing) => {
    let text = ''
    for await (const part of incoming) text += part
    const { method, url, headers } = incoming
    const request = { method, url, headers, body: text ? JSON.parse(text) : undefined, at: Date.now() }
    requests.push(request)
    let answer = answers[Math.min(requests.length, answers.length) - 1]
    if (typeof answer === 'function') answer = answer(request)
    if (answer === 'hang') return
    if (answer === 'reset') return incoming.socket.destroy()
    const { status = 202, body = {}, headers: sent = {} } = answer
    outgoing.writeHead(status, { 'content-type': 'application/json', ...sent })
    outgoing.end(typeof body === 'string' ? body : JSON.stringify(body))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  return { url: `http://127.0.0.1:${server.address().port}`, requests }
}

export const ACCEPTED = { status: 202, body: { event_id: 'e', status: 'accepted', actionable: true, hint: null } }

export const problem = (status, code = 'some_code', headers = {}) => ({
  status,
  headers: { 'content-type': 'application/problem+json', ...headers },
  body: { type: `urn:loopwright:problem:${code}`, title: 'A title', status, code, detail: 'what to do', extra: 7 },
})

/** A retry policy that does not make tests wait. */
export const FAST = { attempts: 4, firstWaitMs: 2, longestWaitMs: 20 }
