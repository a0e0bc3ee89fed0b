/**
 * A crowd of real y-websocket clients for `test_kills`, whose server is killed again and again.
 *
 * A request on stdin is {id, op, ...arguments}; its answer on stdout is {id, result} or {id, error}.
 *
 * Each room has two writers and two followers. One of each keeps its document over most kills, and
 * brings back what it wrote; the other is a new one in every round. All note the updates that the
 * server sends them, as they come from the socket. Whoever loses its connection stays away until the
 * next round, so that nobody brings the server what it has lost before that was noticed.
 */
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import * as decoding from 'lib0/decoding'
import * as prng from 'lib0/prng'
import WebSocket from 'ws'
import { WebsocketProvider } from 'y-websocket'
import * as Y from 'yjs'

const MESSAGE_SYNC = 0
const SYNC_STEP_1 = 0 // all other sync messages carry an update
const BREATHER = 6 // milliseconds at most between two edits of one writer
const PATIENCE = 10000 // milliseconds, for what should happen at once

process.setMaxListeners(0) // every provider listens for the end of the process

const decode = text => new Uint8Array(Buffer.from(text, 'base64'))
const encode = bytes => Buffer.from(bytes).toString('base64')

// No surrogate pairs and no formats: where edits split those, Yjs's own replicas may differ.
const WORDS = ['a', 'bc ', 'żółw', '文書', 'lorem ipsum\n']

const paste = ({ text }, gen, size) => {
  const line = `${prng.int32(gen, 0, 2 ** 31 - 1)}: all work and no play makes Jack a dull boy.\n`
  text.insert(prng.int32(gen, 0, text.length), line.repeat(Math.ceil(size / line.length)).slice(0, size))
}
const put = ({ map }, gen, value) => map.set(prng.oneOf(gen, WORDS), value)
const type = ({ text }, gen) => text.insert(prng.int32(gen, 0, text.length), prng.oneOf(gen, WORDS))
const rubOut = ({ text }, gen, most) => {
  const index = prng.int32(gen, 0, text.length)
  text.delete(index, prng.int32(gen, 0, Math.min(most, text.length - index)))
}

const EDITS = [
  type, type, type,
  (roots, gen) => rubOut(roots, gen, 4),
  (roots, gen) => { if (prng.int32(gen, 0, 9) === 0) rubOut(roots, gen, Infinity) },
  (roots, gen) => paste(roots, gen, prng.int32(gen, 1, 4000)),
  (roots, gen) => put(roots, gen, prng.int32(gen, 0, 999)),
  (roots, gen) => put(roots, gen, new Uint8Array(prng.int32(gen, 0, 50))),
  (roots, gen) => put(roots, gen, new Y.Map([['nested', Y.Array.from([1, new Y.Text('two')])]])),
  ({ map }, gen) => map.delete(prng.oneOf(gen, WORDS)),
  ({ array }, gen) => array.insert(prng.int32(gen, 0, array.length), [prng.oneOf(gen, WORDS), null, { a: 1.5 }]),
  ({ array }, gen) => { if (array.length > 0) array.delete(prng.int32(gen, 0, array.length - 1)) },
  (roots, gen) => roots.text.doc.transact(() => { for (let i = 0; i < 5; i++) type(roots, gen) })
]

const rootsOf = doc => ({ text: doc.getText('text'), map: doc.getMap('map'), array: doc.getArray('array') })

const docOf = (...updates) => {
  const doc = new Y.Doc()
  for (const update of updates) Y.applyUpdate(doc, update)
  return doc
}

/** The same structs, the same deletes, and they read the same. */
const equal = (a, b) => {
  const contents = [a, b].map(doc => Object.values(rootsOf(doc)).map(root => root.toJSON()))
  return Y.equalSnapshots(Y.snapshot(a), Y.snapshot(b)) && isDeepStrictEqual(...contents)
}

/** A document with all that one has, and an update besides. */
const withUpdate = (doc, update) => docOf(Y.encodeStateAsUpdate(doc), update)

class Client {
  constructor (url, room, { writes, stays }) {
    this.room = room
    this.writes = writes
    this.stays = stays
    this.doc = new Y.Doc()
    this.roots = rootsOf(this.doc)
    this.provider = new WebsocketProvider(url, room.name, this.doc, {
      connect: false,
      disableBc: true,
      shouldReconnect: () => false,
      WebSocketPolyfill: this.socketClass()
    })
  }

  /** A WebSocket on which this client is first to see what comes, before the provider. */
  socketClass () {
    const client = this
    return class extends WebSocket {
      constructor (...args) {
        super(...args)
        client.opened = new Promise(resolve => this.once('open', resolve))
        client.closed = new Promise(resolve => this.once('close', resolve))
        this.on('message', data => client.note(new Uint8Array(data)))
      }
    }
  }

  connect () {
    this.synced = new Promise(resolve => this.provider.once('sync', resolve))
    this.wasSynced = false
    this.synced.then(() => { this.wasSynced = true })
    this.provider.connect()
  }

  note (message) {
    const decoder = decoding.createDecoder(message)
    if (decoding.readVarUint(decoder) !== MESSAGE_SYNC || decoding.readVarUint(decoder) === SYNC_STEP_1) return
    this.room.updates.add(encode(decoding.readVarUint8Array(decoder)))
    this.room.received++
    this.onUpdate?.()
  }

  /** Edit whenever there is a connection, in which everything earlier was sent; and once without. */
  async write (gen) {
    let gone = false
    this.closed.then(() => { gone = true })
    while (!gone) {
      if (this.provider.synced) prng.oneOf(gen, EDITS)(this.roots, gen)
      await delay(prng.int32(gen, 0, BREATHER))
    }
    type(this.roots, gen)
  }

  destroy () {
    this.provider.destroy()
    this.doc.destroy()
  }
}

class Room {
  constructor (name) {
    this.name = name
    this.clients = []
    /** Those that were sent in this round, each once. */
    this.updates = new Set()
    this.received = 0
    /** All that the clients ever had: nothing else can be in the store. */
    this.written = new Y.Doc()
    /** What was stored when the server was last killed, which the next one has to pass on. */
    this.state = Y.encodeStateAsUpdate(new Y.Doc())
  }

  /** Have all clients there that belong there; if `anew`, none that was there before. */
  gather (url, anew) {
    this.updates.clear()
    this.received = 0
    const staying = this.clients.filter(client => client.stays && !anew)
    this.clients.filter(client => !staying.includes(client)).forEach(client => client.destroy())
    this.clients = staying
    for (const writes of [true, false]) {
      if (!staying.some(client => client.writes === writes)) staying.push(new Client(url, this, { writes, stays: true }))
      staying.push(new Client(url, this, { writes, stays: false }))
    }
  }

  /** What is wrong with what is stored, in words. */
  judge (state) {
    let stored
    try {
      stored = docOf(state)
    } catch (error) {
      return [`Yjs can't read what is stored: ${error.stack}`]
    }
    const complaints = []
    if (stored.store.pendingStructs !== null || stored.store.pendingDs !== null) {
      complaints.push('what is stored builds on something that is not')
    }
    for (const client of this.clients) {
      const { doc, writes, stays, wasSynced } = client
      client.wasSynced = false // the next judgement may come without a round in between
      if (!writes && !equal(withUpdate(doc, state), stored)) {
        complaints.push(`what a follower has is not what is stored (it ${stays ? 'stays' : 'is new'})`)
      }
      if (!stays && wasSynced && !equal(withUpdate(doc, this.state), doc)) {
        complaints.push('the server did not pass on all that was stored')
      }
      Y.applyUpdate(this.written, Y.encodeStateAsUpdate(doc, Y.encodeStateVector(this.written)))
    }
    const written = Y.snapshot(this.written)
    Y.applyUpdate(this.written, state)
    if (!Y.equalSnapshots(Y.snapshot(this.written), written)) complaints.push('something is stored that nobody wrote')
    this.state = state
    return complaints
  }

  destroy () {
    this.clients.forEach(client => client.destroy())
  }
}

/** By name. */
const rooms = new Map()

/** The rooms of that name, new where there is none; others are forgotten. */
const theRooms = names => {
  for (const [name, room] of rooms) {
    if (names.includes(name)) continue
    room.destroy()
    rooms.delete(name)
  }
  for (const name of names) if (!rooms.has(name)) rooms.set(name, new Room(name))
  return names.map(name => rooms.get(name))
}

const inTime = (promise, what) => {
  const timer = new AbortController()
  const late = delay(PATIENCE, null, timer).then(() => { throw new Error(`not within ${PATIENCE} ms: ${what}`) })
  return Promise.race([promise, late]).finally(() => {
    late.catch(() => {})
    timer.abort()
  })
}

const allOf = (clients, what) => inTime(Promise.all(clients.map(client => client[what])), `all clients ${what}`)

/** When to kill: `wait` milliseconds after what. */
const MOMENTS = {
  /** They begin to connect. */
  connecting: async ({ wait, kill }) => { await delay(wait); kill() },
  /** The first of them is accepted: its room is being loaded. */
  opening: async ({ clients, wait, kill }) => {
    await Promise.any(clients.map(client => client.opened))
    await delay(wait)
    kill()
  },
  /** An edit is on its way. */
  editing: async ({ clients, wait, kill, gen }) => {
    await allOf(clients, 'synced')
    type(clients.find(({ writes }) => writes).roots, gen)
    if (wait >= 1) await delay(wait) // else in the same turn of the loop
    kill()
  },
  /** A follower got an update; at once. */
  seeing: async ({ clients, wait, kill }) => {
    await allOf(clients, 'synced')
    await delay(wait)
    clients.forEach(client => { if (!client.writes) client.onUpdate = kill })
  },
  /** A large paste is on its way. */
  pasting: async ({ clients, wait, kill, gen, size }) => {
    await allOf(clients, 'synced')
    paste(prng.oneOf(gen, clients.filter(({ writes }) => writes)).roots, gen, size)
    await delay(wait)
    kill()
  }
}

const report = rooms => Object.fromEntries(
  rooms.map(({ name, updates, received }) => [name, { updates: [...updates], received }]))

const OPS = {
  /** Connect everyone and write until the server is dead; tells what each room's clients were sent. */
  load: async ({ url, names, anew, seed, moment, wait, size, pid }) => {
    const rooms = theRooms(names)
    rooms.forEach(room => room.gather(url, anew))
    const clients = rooms.flatMap(room => room.clients)
    clients.forEach(client => client.connect())
    const gen = prng.create(seed)
    const writing = clients.filter(({ writes }) => writes).map((client, i) => client.write(prng.create(seed + i)))
    let killed = pid === null // then somebody else kills it
    const kill = () => {
      if (!killed) process.kill(pid, 'SIGKILL')
      killed = true
    }
    const end = allOf(clients, 'closed')
    await Promise.race([MOMENTS[moment]({ clients, wait, size, gen, kill }), end])
    await end
    await Promise.all(writing)
    clients.forEach(client => { client.onUpdate = undefined })
    return report(rooms)
  },

  /** Connect everyone, and wait until all have the same; then kill the server. */
  settle: async ({ url, names, pid }) => {
    const rooms = theRooms(names)
    rooms.forEach(room => room.gather(url, false))
    const clients = rooms.flatMap(room => room.clients)
    clients.forEach(client => client.connect())
    const same = async () => {
      while (!rooms.every(({ clients: [first, ...others] }) => others.every(({ doc }) => equal(first.doc, doc)))) {
        await delay(20)
      }
    }
    await allOf(clients, 'synced')
    await inTime(same(), 'all clients of a room are equal')
    process.kill(pid, 'SIGKILL')
    await allOf(clients, 'closed')
    return report(rooms)
  },

  /** What is wrong with the states that were found in the store. */
  judge: ({ states }) => theRooms(Object.keys(states)).flatMap(
    room => room.judge(decode(states[room.name])).map(complaint => `${room.name}: ${complaint}`))
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
