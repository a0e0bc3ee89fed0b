/**
 * Many real y-websocket clients in one process, driven by JSON lines on stdin.
 *
 * A request is {id, op, ...arguments}; its answer on stdout is {id, result} or {id, error}. Requests
 * run concurrently, for many of them wait for something. Whatever else this process prints is
 * something that should not have happened, and the tests treat it so.
 */
import { EventEmitter, once } from 'node:events'
import { createInterface } from 'node:readline'
import { setTimeout as delay, setImmediate as turn } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import * as prng from 'lib0/prng'
import WebSocket from 'ws'
import { Awareness } from 'y-protocols/awareness'
import { WebsocketProvider as Version3 } from 'y-websocket'
import { WebsocketProvider as Version1 } from 'y-websocket-1'
import { WebsocketProvider as Version2 } from 'y-websocket-2'
import * as Y from 'yjs'

const PROVIDERS = { 1: Version1, 2: Version2, 3: Version3 }
const MESSAGE_AUTH = 2
const LOG_LENGTH = 40

globalThis.WebSocket ??= WebSocket // to resync, y-websocket asks it what OPEN is; as browsers have it
process.setMaxListeners(0) // every provider listens for the end of the process

/** By name. Those destroyed stay: others may be asked whether they still see them. */
const clients = new Map()

/** Whose message is being read: y-websocket tells a denied permission to console.warn only. */
let reader = null
console.warn = (...words) => {
  if (reader === null) console.error(...words)
  else {
    reader.denied.push(words.join(' '))
    reader.note('permission denied')
  }
}

/** One provider, its document and what happened to it. Emits 'change' when anything did. */
class Client extends EventEmitter {
  constructor (name, { version, url, room, params, protocols, awareness, connect, resyncInterval, docFrom }) {
    super()
    this.setMaxListeners(0)
    const past = docFrom === undefined ? undefined : clientNamed(docFrom)
    this.name = name
    this.doc = past?.doc ?? new Y.Doc()
    this.awareness = past?.awareness ?? new Awareness(this.doc)
    if (awareness !== undefined) this.awareness.setLocalState(awareness)
    this.text = this.doc.getText('text')
    this.map = this.doc.getMap('map')
    this.array = this.doc.getArray('array')
    this.opens = 0
    this.messages = 0
    this.closes = []
    this.denied = []
    this.log = []

    this.provider = new PROVIDERS[version](url, room, this.doc, {
      params,
      protocols,
      connect,
      resyncInterval,
      awareness: this.awareness,
      disableBc: true,
      WebSocketPolyfill: this.socketClass()
    })
    const { messageHandlers } = this.provider
    const readAuth = messageHandlers[MESSAGE_AUTH]
    messageHandlers[MESSAGE_AUTH] = (...args) => {
      reader = this
      readAuth(...args)
      reader = null
    }
    this.doc.on('update', () => this.emit('change'))
    this.awareness.on('update', () => this.emit('change'))
    this.provider.on('status', ({ status }) => this.note(status))
    this.provider.on('sync', synced => this.note(synced ? 'synced' : 'not synced'))
  }

  /** A WebSocket that tells this client what happens on it, whatever the provider makes of it. */
  socketClass () {
    const client = this
    return class extends WebSocket {
      constructor (...args) {
        super(...args)
        client.socket = this
        client.closed = new Promise(resolve => this.once('close', resolve))
        this.on('open', () => {
          client.opens++
          client.note('open')
        })
        this.on('message', data => {
          client.messages++
          client.note(`in ${glimpse(data)}`)
        })
        this.on('close', (code, reason) => {
          client.closes.push({ code, reason: String(reason) })
          client.note(`close ${code} ${reason}`)
        })
      }

      send (data) {
        client.note(`out ${glimpse(data)}`)
        super.send(data)
      }
    }
  }

  note (event) {
    this.log.push(`${Math.round(performance.now())} ms: ${event}`)
    if (this.log.length > LOG_LENGTH) this.log.shift()
    this.emit('change')
  }

  content () {
    return [this.text.toDelta(), this.map.toJSON(), this.array.toJSON()]
  }

  /** Same structs, same deletes, nothing pending, and it reads the same. */
  equals (other) {
    return this.doc.store.pendingStructs === null && this.doc.store.pendingDs === null &&
      Y.equalSnapshots(Y.snapshot(this.doc), Y.snapshot(other.doc)) &&
      isDeepStrictEqual(this.content(), other.content())
  }

  sees (name) {
    return this.awareness.getStates().has(clientNamed(name).doc.clientID)
  }

  toString () {
    const text = this.text.length > 80 ? `${this.text.length} characters` : `'${this.text}'`
    const present = [...this.awareness.getStates().keys()]
    return `${this.name} (id ${this.doc.clientID}): text ${text}, sees ${present}, lately:\n  ` +
      this.log.join('\n  ')
  }
}

const clientNamed = name => {
  if (!clients.has(name)) throw new Error(`no client is called ${name}`)
  return clients.get(name)
}

const glimpse = data => {
  const bytes = Buffer.from(data)
  return `${bytes.subarray(0, 24).toString('hex')} (${bytes.length} bytes)`
}

/** Resolve, with the seconds it took, once `check()` holds; ask again when a client changes. */
const until = (watched, check, seconds, what) => new Promise((resolve, reject) => {
  const start = performance.now()
  let next = null // many changes in one turn of the loop are looked at once
  const settle = (how, value) => {
    clearTimeout(timer)
    clearImmediate(next)
    watched.forEach(client => client.off('change', onChange))
    how(value)
  }
  const look = () => {
    next = null
    try {
      if (check()) settle(resolve, (performance.now() - start) / 1000)
    } catch (error) {
      settle(reject, error)
    }
  }
  const onChange = () => { next ??= setImmediate(look) }
  const timer = setTimeout(() => {
    settle(reject, new Error(`not within ${seconds} s: ${what}\n${watched.join('\n')}`))
  }, seconds * 1000)
  watched.forEach(client => client.on('change', onChange))
  look()
})

/** What `wait` can wait for. */
const CONDITIONS = {
  synced: (client, expected) => client.provider.synced === expected,
  text: (client, expected) => client.text.toString() === expected,
  contains: (client, expected) => client.text.toString().includes(expected),
  present: (client, names) => names.every(name => client.sees(name)),
  absent: (client, names) => !names.some(name => client.sees(name)),
  states: (client, states) => Object.entries(states).every(
    ([id, state]) => isDeepStrictEqual(client.awareness.getStates().get(Number(id)) ?? null, state)
  ),
  closes: (client, count) => client.closes.length >= count,
  opens: (client, count) => client.opens >= count,
  denied: (client, count) => client.denied.length >= count,
  holds: (client, code) => evaluate(client, code) === true
}

/** What an expression gives in which `doc` is the client's document. */
const evaluate = (client, code) => new Function('doc', 'Y', `return ${code}`)(client.doc, Y)

// No surrogate pairs and no formats: where edits split those, Yjs's own replicas may differ.
const WORDS = ['a', 'bc ', 'żółw', '文書', 'lorem ipsum\n']

/** Random edits, most of them in the text. */
const EDITS = [
  ({ text }, gen) => text.insert(prng.int32(gen, 0, text.length), prng.oneOf(gen, WORDS)),
  ({ text }, gen) => text.insert(prng.int32(gen, 0, text.length), prng.oneOf(gen, WORDS)),
  ({ text }, gen) => {
    const index = prng.int32(gen, 0, text.length)
    text.delete(index, prng.int32(gen, 0, Math.min(4, text.length - index)))
  },
  ({ map }, gen) => map.set(prng.oneOf(gen, WORDS), prng.int32(gen, 0, 999)),
  ({ map }, gen) => map.delete(prng.oneOf(gen, WORDS)),
  ({ array }, gen) => array.insert(prng.int32(gen, 0, array.length), [prng.oneOf(gen, WORDS)]),
  ({ array }, gen) => { if (array.length > 0) array.delete(prng.int32(gen, 0, array.length - 1)) }
]

const OPS = {
  create: ({ name, ...options }) => {
    if (clients.has(name)) throw new Error(`there is a client called ${name}`)
    clients.set(name, new Client(name, options))
    return clients.get(name).doc.clientID
  },

  // ---- edit
  insert: ({ name, index, text, attributes }) => {
    clientNamed(name).text.insert(index, text, attributes ?? undefined)
  },
  delete: ({ name, index, length }) => clientNamed(name).text.delete(index, length),
  set: ({ name, key, value }) => { clientNamed(name).map.set(key, value) },
  push: ({ name, value }) => clientNamed(name).array.push([value]),
  evaluate: ({ name, code }) => { evaluate(clientNamed(name), code) },
  random: async ({ name, count, seed }) => {
    const client = clientNamed(name)
    const gen = prng.create(seed)
    for (let i = 0; i < count; i++) {
      prng.oneOf(gen, EDITS)(client, gen)
      await turn() // so that what others wrote comes in between
    }
  },
  fill: ({ name, size }) => {
    const line = 'All work and no play makes Jack a dull boy.\n'
    clientNamed(name).text.insert(0, line.repeat(Math.ceil(size / line.length)).slice(0, size))
  },

  // ---- read
  read: ({ name }) => {
    const { doc, text, map, array } = clientNamed(name)
    return {
      text: text.toString(),
      delta: text.toDelta(),
      map: map.toJSON(),
      array: array.toJSON(),
      update: Buffer.from(Y.encodeStateAsUpdate(doc)).toString('base64'),
      stateVector: Buffer.from(Y.encodeStateVector(doc)).toString('base64')
    }
  },
  report: ({ name }) => {
    const { opens, messages, closes, denied, log } = clientNamed(name)
    return { opens, messages, closes, denied, log }
  },

  // ---- presence
  present: ({ name, state }) => clientNamed(name).awareness.setLocalState(state),
  states: ({ name }) => Object.fromEntries(clientNamed(name).awareness.getStates()),

  // ---- the connection
  connect: async ({ name }) => {
    const { closed, provider } = clientNamed(name)
    if (!provider.shouldConnect) await closed // or an old version thinks it is still connected
    provider.connect()
  },
  disconnect: ({ name }) => clientNamed(name).provider.disconnect(),
  destroy: ({ name }) => clientNamed(name).provider.destroy(),
  /** Lose the connection without a word, as when a laptop's lid is closed. */
  drop: async ({ name, reconnect }) => {
    const { closed, provider, socket } = clientNamed(name)
    provider.shouldConnect = reconnect
    socket.terminate()
    await closed
  },

  // ---- wait
  wait: ({ name, conditions, seconds }) => {
    const client = clientNamed(name)
    const wanted = Object.entries(conditions)
    const holds = () => wanted.every(([what, value]) => CONDITIONS[what](client, value))
    return until([client], holds, seconds, `${name} ${JSON.stringify(conditions)}`)
  },
  equal: ({ names, seconds }) => {
    const [first, ...others] = names.map(clientNamed)
    const holds = () => others.every(other => first.equals(other) && other.equals(first))
    return until([first, ...others], holds, seconds, `${names} equal`)
  },
  /** Let time pass, and fail at once if one of them loses its connection. */
  idle: async ({ names, seconds }) => {
    const losses = names.map(clientNamed).map(async client => {
      await client.closed
      throw new Error(`lost its connection: ${client}`)
    })
    await Promise.race([delay(seconds * 1000), ...losses])
  },

  // ---- not a Yjs client at all
  /** Open a WebSocket, send something, and tell how the server ended the connection. */
  raw: async ({ url, text, binary, bytes, seconds }) => {
    const socket = new WebSocket(url)
    const deadline = { signal: AbortSignal.timeout(seconds * 1000) }
    try {
      await once(socket, 'open', deadline)
      if (text !== undefined) socket.send(text)
      if (binary !== undefined) socket.send(Buffer.from(binary, 'hex'))
      if (bytes !== undefined) socket._socket.write(Buffer.from(bytes, 'hex'))
      const [code, reason] = await once(socket, 'close', deadline)
      return { code, reason: String(reason) }
    } catch (error) {
      throw new Error(`no close from the server within ${seconds} s: ${error.message}`)
    } finally {
      socket.terminate()
    }
  }
}

createInterface({ input: process.stdin }).on('close', () => process.exit()).on('line', async line => {
  const { id, op, ...args } = JSON.parse(line)
  let answer
  try {
    answer = { id, result: (await OPS[op](args)) ?? null }
  } catch (error) {
    answer = { id, error: error.stack }
  }
  process.stdout.write(JSON.stringify(answer) + '\n')
})
