/** Ids of feedback events: UUIDv7 (RFC 9562, section 5.7), which sort by creation time. */

/**
 * Return a new id: 48 bits of Unix time in milliseconds, version and variant, and 74 random bits.
 *
 * Ids must be unique, not secret. So `Math.random` serves where Web Crypto is missing, as in Node 18.
 */
export function newEventId(now: number = Date.now()): string {
  const bytes = randomBytes(16)
  for (let i = 0; i < 6; i++) bytes[i] = Math.floor(now / 2 ** (8 * (5 - i))) % 256
  bytes[6] = 0x70 | (bytes[6]! & 0x0f)
  bytes[8] = 0x80 | (bytes[8]! & 0x3f)
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-')
}

function randomBytes(length: number): Uint8Array {
  const bytes = new Uint8Array(length)
  const crypto = globalThis.crypto as Crypto | undefined
  return crypto === undefined ? bytes.map(() => Math.floor(Math.random() * 256)) : crypto.getRandomValues(bytes)
}
