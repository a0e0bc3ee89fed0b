/**
 * Four real y-websocket clients in one room for `test_flaky`, on a network that fails all the time.
 *
 * A request on stdin is {id, op, ...arguments}; its answer on stdout is {id, result} or {id, error}.
 *
 * They edit whatever happens, connected or not, and each has other habits: see `CLIENTS`. All that a
 * client got, wrote and sent is kept, for the day they end up unequal.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import * as decoding from 'lib0/decoding'
import * as encoding from 'lib0/encoding'
import WebSocket from 'ws'
import { WebsocketProvider as Version3 } from 'y-websocket'
import { WebsocketProvider as Version1 } from 'y-websocket-1'
import { WebsocketProvider as Version2 } from 'y-websocket-2'
import * as Y from 'yjs'
import { describe } from './described.mjs'
import { Chance, EDITS, Editor } from './oracle_sessions.mjs'

const ROOM = 'room'
const MESSAGE_SYNC = 0
const SYNC_STEP_1 = 0
const SYNC_STEP_2 = 1
const UPDATE = 2

const EDIT_EVERY = 50 // milliseconds between two edits of one client, on average
const FLUSH_AFTER = 300 // milliseconds at most that a client collects what it sends
const HABIT_EVERY = 700 // milliseconds between two times that a client does what only it does, on average
const BACKOFF = 300 // milliseconds at most before a client comes back
const LOOK_EVERY = 100
const LONG = 1000 // bytes
const TOO_OFTEN = 10
const PASTE_EVERY = 200 // edits of one client, on average
const PASTED_LINES = 3000 // at most

/** The close codes that a client who did no wrong may see; none says that it did. */
const INNOCENT = [1000, 1001, 1005, 1006, 1012]

const CLASSES = ['text', 'nested', 'xml', 'embeds', 'binary', 'values', 'subdocs', 'undo']

// No surrogate pairs in texts: where edits split those, Yjs's own replicas may differ.
const WORDS = ['a', 'word', ' ', 'two words\n', '漢字', '日本語の文', 'e\u0301', 'שלום', '\0', '\ufffd', 'long '.repeat(40)]

const WHISPER = 'whisper'

globalThis.WebSocket = WebSocket // which y-websocket looks at to resync

process.setMaxListeners(0) // every provider listens for the end of the process

/** What should not have happened, each once. */
const problems = new Set()
process.on('uncaughtException', error => problems.add(`uncaught: ${error.stack}`))
// y-protocols tells what it can't apply, and y-websocket what is denied, to the console only.
console.error = console.warn = (...words) => problems.add(words.map(word => word?.stack ?? String(word)).join(' '))

const decode = text => new Uint8Array(Buffer.from(text, 'base64'))
const encode = bytes => Buffer.from(bytes).toString('base64')

const NOTHING = Y.encodeStateAsUpdate(new Y.Doc())

class Writer extends Editor {
  words () { return this.chance.pick(WORDS) }

  /** More than a socket takes at once. */
  paste () {
    const { type } = this.find(Y.Text)
    type.insert(this.place(type), 'All work and no play makes Jack a dull boy.\n'.repeat(this.chance.below(PASTED_LINES)))
  }
}

const syncMessage = (type, update) => {
  const encoder = encoding.createEncoder()
  encoding.writeVarUint(encoder, MESSAGE_SYNC)
  encoding.writeVarUint(encoder, type)
  encoding.writeVarUint8Array(encoder, update)
  return encoding.toUint8Array(encoder)
}

/** [type, payload] of a sync message; null of another one. */
const readSync = message => {
  const decoder = decoding.createDecoder(message)
  if (decoding.readVarUint(decoder) !== MESSAGE_SYNC) return null
  return [decoding.readVarUint(decoder), decoding.readVarUint8Array(decoder)]
}

/**
 * What people's providers do besides what y-websocket does:
 * - merges: collects what it sends for a while, and sends it merged into one update.
 * - logs: keeps updates rather than a document, and answers from what they are if merged.
 * - resends: sends all it has, or all that another may lack, now and then.
 * - reloads: is closed now and then, and comes back as another client of what it kept.
 * - whispers: passes something on to another client over another link, as y-webrtc has it, which may
 *   build on what that one does not have yet.
 */
const CLIENTS = [
  { Provider: Version3, resyncInterval: 500, habits: ['whispers'] },
  { Provider: Version3, habits: ['merges', 'whispers'] },
  { Provider: Version2, habits: ['merges', 'logs', 'reloads'] },
  { Provider: Version1, habits: ['resends', 'reloads'] }
]
const NOW_AND_THEN = ['resends', 'reloads', 'whispers']

class Client {
  constructor (name, url, seed, { Provider, resyncInterval = -1, habits }) {
    this.name = name
    this.url = url
    this.Provider = Provider
    this.resyncInterval = resyncInterval
    this.chance = new Chance(seed)
    this.habits = habits
    this.edits = 0
    this.opens = 0
    this.waits = 0
    this.retries = 0
    this.begun = performance.now()
    /** [milliseconds, what, bytes] */
    this.trace = []
    this.open([NOTHING])
  }

  note (what, bytes = null) {
    this.trace.push([Math.round(performance.now() - this.begun), what, bytes])
  }

  /** Begin with what was kept. */
  open (kept) {
    this.doc = new Y.Doc()
    this.log = kept
    this.doc.on('update', (update, origin) => {
      if (origin !== this) this.log.push(update)
      if (origin !== this.provider && origin !== this && origin !== WHISPER) this.note('wrote', update)
    })
    for (const update of kept) Y.applyUpdate(this.doc, update, this)
    this.note(`opens as ${this.doc.clientID}`, Y.encodeStateAsUpdate(this.doc))
    this.editor = new Writer(Y, this.doc, this.chance, CLASSES)
    this.provider = new this.Provider(this.url, ROOM, this.doc, {
      disableBc: true,
      maxBackoffTime: BACKOFF,
      resyncInterval: this.resyncInterval,
      WebSocketPolyfill: this.socketClass()
    })
  }

  close () {
    this.provider.destroy()
    this.doc.destroy()
  }

  socketClass () {
    const client = this
    return class extends WebSocket {
      constructor (...args) {
        super(...args)
        this.collected = []
        this.timer = null
        this.peerHas = null
        this.on('open', () => client.note('connected'))
        this.on('close', (code, reason) => {
          client.note(`disconnected ${code} ${reason}`)
          if (!INNOCENT.includes(code)) problems.add(`${client.name} was refused: ${code} ${reason}`)
        })
        this.on('message', data => { // before the provider has it
          const message = new Uint8Array(data)
          client.note('got', message)
          const [type, payload] = readSync(message) ?? []
          if (type === SYNC_STEP_1) this.peerHas = payload
        })
      }

      send (message) {
        const [type, payload] = readSync(message) ?? []
        if (type === UPDATE && client.habits.includes('merges')) {
          this.collected.push(payload)
          this.timer ??= setTimeout(() => this.flush(), client.chance.below(FLUSH_AFTER))
        } else if (type === SYNC_STEP_2 && client.habits.includes('logs')) {
          this.pass(syncMessage(SYNC_STEP_2, Y.diffUpdate(Y.mergeUpdates(client.log), this.peerHas)))
        } else {
          this.pass(message)
        }
      }

      flush () {
        this.timer = null
        const updates = this.collected.splice(0)
        if (this.readyState === WebSocket.OPEN) this.pass(syncMessage(UPDATE, Y.mergeUpdates(updates)))
      }

      pass (message) {
        client.note('sent', message)
        super.send(message)
      }
    }
  }

  edit () {
    const edits = CLASSES.flatMap(name => EDITS[name])
    const one = () => this.editor[this.chance.below(PASTE_EVERY) === 0 ? 'paste' : this.chance.pick(edits)]()
    if (this.chance.of(85)) one()
    else this.doc.transact(() => { one(); one(); one() })
    this.edits++
  }

  /** What only this client does. */
  indulge () {
    const habits = this.habits.filter(habit => NOW_AND_THEN.includes(habit))
    if (habits.length > 0) this[this.chance.pick(habits)]()
  }

  resends () {
    const state = Y.encodeStateAsUpdate(this.doc, this.chance.of(50) ? undefined : Y.encodeStateVector(this.other().doc))
    const { ws } = this.provider
    if (ws?.readyState === WebSocket.OPEN) ws.pass(syncMessage(UPDATE, state))
  }

  whispers () {
    const last = this.log.slice(-20)
    const some = last.filter(() => this.chance.of(30))
    const update = Y.mergeUpdates(some.length > 0 ? some : last)
    const other = this.other()
    other.note('heard', update)
    Y.applyUpdate(other.doc, update, WHISPER)
    if (other.doc.store.pendingStructs !== null) other.waits++
  }

  other () {
    return this.chance.pick([...clients.values()].filter(client => client !== this))
  }

  reloads () {
    if (this.chance.of(70)) return
    this.close()
    this.opens++
    const { log, doc } = this
    this.open(this.chance.of(50) ? [Y.mergeUpdates(log)] : [Y.encodeStateAsUpdate(doc)])
  }

  async work (stopped) {
    const often = async (milliseconds, what) => {
      while (!stopped.aborted) {
        await delay(this.chance.below(2 * milliseconds))
        if (!stopped.aborted) what()
      }
    }
    await Promise.all([often(EDIT_EVERY, () => this.edit()), often(HABIT_EVERY, () => this.indulge())])
  }

  retry () {
    const { pendingStructs, pendingDs } = this.doc.store
    if (pendingStructs === null && pendingDs === null) return
    this.note('tries again')
    this.retries++
    Y.applyUpdate(this.doc, Y.encodeStateAsUpdate(this.doc), this.provider)
  }

  /** A new connection, which is told all again. */
  reconnect () {
    this.provider.ws?.terminate()
  }
}

const docOf = updates => {
  const doc = new Y.Doc()
  for (const update of updates) Y.applyUpdate(doc, update)
  return doc
}

/** By name. */
const clients = new Map()
let working = null
const stop = new AbortController()

const differing = (a, b) => Object.keys(a).filter(aspect => a[aspect] !== b[aspect])

/** Where two strings begin to differ; whole ones don't fit on a screen. */
const excerpts = (a, b) => {
  let at = 0
  while (at < a.length && a[at] === b[at]) at++
  return [a, b].map(text => text.slice(Math.max(at - 60, 0), at + 200)).join('\n  ')
}

/** What is unequal among documents by name, in words; nothing if all is well. */
const differences = docs => {
  const described = [...docs].map(([name, doc]) => [name, describe(doc)])
  const [[first, expected], ...others] = described
  const found = []
  for (const [name, description] of described) {
    for (const aspect of ['pending structs', 'pending deletes']) {
      if (description[aspect] !== '[]') found.push(`${name} holds back ${aspect}: ${description[aspect].slice(0, 200)}`)
    }
  }
  for (const [name, description] of others) {
    const aspects = differing(expected, description)
    for (const aspect of aspects) {
      found.push(`${aspect} of ${first} and ${name}:\n  ${excerpts(expected[aspect], description[aspect])}`)
    }
    if (aspects.join() === 'content') found.push('But they have the same structs and deletes: this may be Yjs\'s own doing.')
  }
  return found
}

const total = what => [...clients.values()].reduce((sum, client) => sum + client[what], 0)

const docsOf = clients => new Map([...clients].map(([name, { doc }]) => [name, doc]))

/** Whether it is worth to look closer. */
const mayBeEqual = () => {
  const docs = [...clients.values()].map(({ doc }) => doc)
  const vectors = docs.map(doc => JSON.stringify([...Y.decodeStateVector(Y.encodeStateVector(doc))].sort(([a], [b]) => a - b)))
  return vectors.every(vector => vector === vectors[0])
}

/**
 * Wait until nothing is unequal; returns what still is. Half-way, Yjs is told to try again what it
 * holds back: it should not need to, but forgets what it waits for (see `retried` in `oracle.mjs`).
 */
const settled = async seconds => {
  for (let looks = Math.ceil(seconds * 1000 / LOOK_EVERY); looks > 0; looks--) {
    await delay(LOOK_EVERY)
    if (mayBeEqual() && differences(docsOf(clients)).length === 0) return []
    if (looks === Math.ceil(seconds * 500 / LOOK_EVERY)) clients.forEach(client => client.retry())
  }
  return differences(docsOf(clients))
}

/** Long updates that came again and again over one connection: somebody goes round in circles. */
const repetitions = ({ name, trace }) => {
  const found = []
  let times = new Map()
  for (const [at, what, bytes] of trace) {
    if (what === 'connected') times = new Map()
    if (what !== 'got' || bytes.length < LONG || readSync(bytes)?.[0] !== UPDATE) continue
    const message = encode(bytes)
    times.set(message, (times.get(message) ?? 0) + 1)
    if (times.get(message) === TOO_OFTEN) found.push(`${name} was sent the same ${bytes.length} bytes ${TOO_OFTEN} times by ${at} ms`)
  }
  return found
}

const OPS = {
  start: ({ url, seed }) => {
    CLIENTS.forEach((options, i) => {
      const name = `client ${i} (${options.habits.join(', ')})`
      clients.set(name, new Client(name, url, seed + i, options))
    })
    working = Promise.all([...clients.values()].map(client => client.work(stop.signal)))
  },

  /** No more edits. */
  stop: async () => {
    stop.abort()
    await working
    clients.forEach(client => client.note('stops'))
    return { edits: total('edits'), reloads: total('opens'), waits: total('waits') }
  },

  /** So many edits of each at once. */
  edit: ({ count }) => {
    for (const client of clients.values()) for (let i = 0; i < count; i++) client.edit()
  },

  /** Wait until all have the same; tells what they do not. */
  settle: async ({ patience }) => settled(patience),

  /** Somebody new. */
  join: ({ url }) => { clients.set('newcomer', new Client('newcomer', url, 0, { Provider: Version3, habits: [] })) },

  /** Have everyone lose the connection. */
  reconnect: () => clients.forEach(client => client.reconnect()),

  /** What is wrong with what is stored. */
  judge: ({ updates }) => {
    const stored = docOf(updates.map(decode))
    return differences(new Map([...docsOf(clients), ['store', stored]]))
  },

  /** What should not have happened, and how often Yjs had to be told to try again. */
  report: () => ({
    problems: [...problems, ...[...clients.values()].flatMap(repetitions)],
    retries: total('retries')
  }),

  save: ({ directory }) => {
    let number = 0
    for (const { name, doc, trace } of clients.values()) {
      const path = join(directory, `client${number++}`)
      writeFileSync(`${path}.update`, Y.encodeStateAsUpdate(doc))
      writeFileSync(`${path}.json`, JSON.stringify({ name, ...describe(doc) }, null, 1))
      const lines = trace.map(([at, what, bytes]) => JSON.stringify({ at, what, bytes: bytes && encode(bytes) }))
      writeFileSync(`${path}.trace`, lines.join('\n') + '\n')
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
