/**
 * What honest clients of many engines send to a server: all that ever comes in over their sockets.
 *
 * As in `oracle_sessions.mjs` all chance comes from the seed. Here clients are of several versions of
 * Yjs, in one session or each in its own; and they send not only their edits as they make them, but
 * all that they could send: edits batched by Y.mergeUpdates, cut by Y.diffUpdate, their state while
 * structs wait in it for others, what they heard from others over another link, restored snapshots,
 * what an update looks like after it was through another format.
 */
import { Awareness, applyAwarenessUpdate, encodeAwarenessUpdate } from 'y-protocols/awareness'
import {
  CLIENT_IDS, Chance, EDITS, EMBEDS, Editor, FORMATS, HALVES, KEYS, MAX_DEPTH, REMOTE, VALUES, WORDS,
  listable, liveTypes, someClasses
} from './oracle_sessions.mjs'

/** The versions of Yjs in the tests, by the names of their packages, oldest first. */
export const VERSIONS = [
  'yjs-13.0', 'yjs-13.2', 'yjs-13.4', 'yjs-13.5', 'yjs-13.5.53', 'yjs-13.6', 'yjs-13.6.14', 'yjs', '@y/y'
]
const modules = new Map()

/** They warn that there is more than one of them; nothing goes from one to the other but bytes. */
export const load = async names => {
  const { error } = console
  console.error = () => {}
  for (const name of names) modules.set(name, await import(name))
  console.error = error
}

/** `Editor` for Yjs 14, where every type is a list, a map and a text in one. */
class Editor14 {
  constructor (Y, doc, chance, classes) {
    Object.assign(this, { Y, doc, chance })
    this.splits = classes.includes('surrogates')
    this.roots = ['t', 'm', 'a', 'x'].map(name => doc.get(name))
    this.history = classes.includes('undo') ? new Y.UndoManager(this.roots, { captureTimeout: 0 }) : null
    this.guids = 0
  }

  find () { return this.chance.pick(liveTypes(this.Y, this.doc)) }
  words () { return this.chance.pick(this.splits && this.chance.of(60) ? HALVES : WORDS) }
  format () { return { ...this.chance.pick(FORMATS) } }
  place (type, from = 0) { return from + this.chance.below(type.length - from + 1) }

  insert (content, format) {
    const { type } = this.find()
    type.insert(this.place(type), content, format)
  }

  newType (name = this.chance.pick([null, null, 'p', 'emoji😀'])) {
    const type = new this.Y.Type(name)
    if (this.chance.of(50)) type.insert(0, this.words())
    if (this.chance.of(50)) type.setAttr(this.chance.pick(KEYS), this.chance.pick(VALUES))
    return type
  }

  writeText () { this.insert(this.words(), ...this.chance.of(30) ? [this.format()] : []) }

  typeText () {
    const { type } = this.find()
    let at = this.place(type)
    for (const character of this.words().slice(0, 12)) {
      type.insert(at, character)
      at += character.length
    }
  }

  deleteText () {
    const { type } = this.find()
    const start = this.place(type)
    const length = Math.min(this.chance.below(6), type.length - start)
    if (length > 0) type.delete(start, length)
  }

  formatText () {
    const { type } = this.find()
    const start = this.place(type)
    type.format(start, this.place(type, start) - start, this.format())
  }

  put (value) {
    const { type } = this.find()
    if (this.chance.of(70)) type.setAttr(this.chance.pick(KEYS), value)
    else if (listable(value)) type.insert(this.place(type), [value])
  }

  nest () {
    const { type, depth } = this.find()
    if (depth >= MAX_DEPTH) return
    if (this.chance.of(50)) type.setAttr(this.chance.pick(KEYS), this.newType())
    else type.insert(this.place(type), [this.newType()])
  }

  deleteSomething () {
    if (this.chance.of(50)) return this.deleteText()
    this.find().type.deleteAttr(this.chance.pick(KEYS))
  }

  embed () { this.insert([this.chance.pick(EMBEDS)], this.format()) }
  putValue () { this.put(this.chance.pick(VALUES)) }
  putValues () { this.insert(VALUES.filter(value => listable(value) && this.chance.of(15))) }
  putBinary () { this.put(new Uint8Array(this.chance.below(5))) }
  putSubdocument () { this.put(new this.Y.Doc({ guid: `${this.doc.clientID}-${this.guids++}` })) }
  nestXml () { this.insert([this.newType('p')]) }
  setAttribute () { this.find().type.setAttr(this.chance.pick(KEYS), this.words()) }
  putJson () { this.putValue() }
  undo () { this.history.undo() }
  redo () { this.history.redo() }
}

/**
 * Of a hook these write what is no type, so that no engine can read it, themselves included: nobody
 * makes one in their company.
 */
const WITHOUT_HOOKS = ['yjs-13.0', 'yjs-13.2']
class EditorWithoutHooks extends Editor {
  newXml () {
    const made = super.newXml()
    return made instanceof this.Y.XmlHook ? new this.Y.XmlText(this.words()) : made
  }
}

const STATES = [
  {}, { user: { name: 'Ada 😀', color: '#ff0000' } }, { cursor: null }, { half: '\ud83d' }, { n: 1e300, m: -0.5 },
  { cursor: { anchor: { type: { client: 1, clock: 2 }, tname: null, item: null, assoc: 0 } } }, 'text', 0, [], true,
  { long: 'é'.repeat(3000) }, { a: undefined, '': { '"\\\n\u2028': [null] } }
]

/** One client: its document, what it has not sent yet, and what is on its way to it. */
class Peer {
  constructor (session, version) {
    Object.assign(this, { session, version, Y: modules.get(version) })
    this.number = session.peers.length
    this.links = session.peers.map(() => []) // from each other peer
    session.peers.forEach(peer => peer.links.push([]))
    this.links.push(null)
    this.awareness = null
    this.open(new this.Y.Doc({ guid: 'doc', gc: !session.classes.includes('gc') || session.chance.of(50) }))
  }

  /** Go on with another document, as a page does that was loaded again. */
  open (doc) {
    const { session: { chance, classes, ids } } = this
    this.doc = doc
    doc.clientID = ids.length > 0 && chance.of(50) ? chance.take(ids) : 1000 + chance.below(2 ** 31 - 2000)
    this.id = doc.clientID
    const kind = this.version === '@y/y' ? Editor14 : this.session.hooks ? Editor : EditorWithoutHooks
    this.editor = new kind(this.Y, doc, chance, classes)
    this.queue = []
    // Some keep a document in step with a second tab, and send what they hear from there, too.
    const forwards = chance.of(15)
    // The field's providers use V1; some applications store V2 and convert it.
    const converts = 'convertUpdateFormatV2ToV1' in this.Y && chance.of(10)
    doc.on(converts ? 'updateV2' : 'update', (update, origin) => {
      if (converts) update = this.Y.convertUpdateFormatV2ToV1(update)
      if (origin !== REMOTE) this.links.forEach((_, i) => i !== this.number && this.session.peers[i].links[this.number].push(update))
      if (origin !== REMOTE || forwards) this.queue.push(update)
      this.session.made.push(update)
    })
    this.awareness?.destroy()
    this.awareness = new Awareness(doc)
  }

  /** Old versions, and attempts at what can't be done, may throw: what was written stays honest. */
  try (action) {
    try {
      return action()
    } catch (error) {
      const count = this.session.threw
      const name = `${this.version}: ${error.message.slice(0, 60)}`
      count[name] = (count[name] ?? 0) + 1
    }
  }

  edit () {
    const { session: { chance, edits } } = this
    const edit = () => this.try(() => this.editor[chance.pick(edits)]())
    if (chance.of(80)) edit()
    else this.doc.transact(() => { edit(); edit(); edit() })
  }

  /** So much in one go that a server reads it in steps: what was made offline, or was imported. */
  work (chance) {
    const [text, map] = this.editor.roots
    const set = map instanceof (this.Y.Map ?? Object) && 'set' in map ? map.set : map.setAttr
    this.doc.transact(() => {
      for (let n = 0; n < 700; n++) {
        set.call(map, chance.pick(KEYS), n)
        text.insert(0, chance.pick(WORDS).slice(0, 2))
      }
    })
  }

  hear (chance) {
    const link = chance.pick(this.links)
    for (let n = chance.below(6); link !== null && n > 0 && link.length > 0; n--) {
      const update = chance.of(80) ? link.shift() : chance.take(link)
      if (chance.of(97)) this.apply(update) // or it is lost
    }
  }

  apply (update) {
    this.try(() => this.Y.applyUpdate(this.doc, update, REMOTE))
    this.doc.clientID = this.id // 13.0 takes another sometimes, which would not be the seed's
  }

  send (chance) {
    const updates = this.queue.splice(0, 1 + chance.below(8))
    if (updates.length > 1 && 'mergeUpdates' in this.Y && chance.of(25)) this.tell('u', this.merge(updates))
    else updates.forEach(update => this.tell('u', update))
  }

  merge (updates) { return this.try(() => this.Y.mergeUpdates(updates)) }

  tell (kind, bytes) {
    if (bytes !== undefined) this.session.frames.push([this.number, kind, bytes])
  }

  /** The answer to a server's SyncStep1: all that it has, or what somebody else lacks. */
  sync (chance, other) {
    this.queue = []
    this.tell('v', this.session.stateVectorOf(this))
    const known = chance.of(40) ? [] : [this.session.stateVectorOf(other)]
    this.tell('s', this.try(() => this.Y.encodeStateAsUpdate(this.doc, ...known)))
  }

  /** Updates put together from anywhere, as by what keeps them in a database. */
  compact (chance, made, other) {
    if (!('mergeUpdates' in this.Y) || made.length === 0) return
    let update = this.merge(Array.from({ length: 2 + chance.below(8) }, () => chance.pick(made)))
    if (update !== undefined && chance.of(40)) {
      update = this.try(() => this.Y.diffUpdate(update, this.session.stateVectorOf(other)))
    }
    if (update !== undefined && chance.of(20) && 'convertUpdateFormatV1ToV2' in this.Y) {
      update = this.try(() => this.Y.convertUpdateFormatV2ToV1(this.Y.convertUpdateFormatV1ToV2(update)))
    }
    if (update !== undefined && chance.of(40) && 'intersectUpdateWithContentIds' in this.Y) {
      const other = chance.pick(made)
      update = this.try(() => this.Y.intersectUpdateWithContentIds(update, this.Y.createContentIdsFromUpdate(other)))
    }
    this.tell(chance.pick(['u', 's']), update)
  }

  /** Go back to a snapshot, in a document of its own. */
  restore (chance) {
    if (!('createDocFromSnapshot' in this.Y) || this.doc.gc) return
    if (this.snapshot === undefined || chance.of(50)) {
      this.snapshot = this.Y.snapshot(this.doc)
      return
    }
    const doc = this.try(() => this.Y.createDocFromSnapshot(this.doc, this.snapshot))
    this.snapshot = undefined
    if (doc === undefined) return
    this.open(doc)
    this.sync(chance, this)
  }

  /** The page is loaded again: what was kept is what the document said of itself. */
  reload (chance) {
    const state = this.try(() => this.Y.encodeStateAsUpdate(this.doc))
    this.open(new this.Y.Doc({ guid: 'doc', gc: this.doc.gc }))
    if (state !== undefined) this.apply(state)
    if (chance.of(50)) this.sync(chance, this)
  }

  show (chance) {
    const { awareness } = this
    if (chance.of(20)) awareness.setLocalState(null)
    else awareness.setLocalState(chance.pick(STATES))
    const clients = chance.of(80) ? [awareness.clientID] : [...awareness.getStates().keys()]
    const update = encodeAwarenessUpdate(awareness, clients)
    this.tell('a', update)
    const other = chance.pick(this.session.peers)
    if (other !== this) applyAwarenessUpdate(other.awareness, update, this)
  }
}

class HonestSession {
  constructor ({ seed, versions = VERSIONS, steps, classes }) {
    const chance = this.chance = new Chance(seed)
    this.classes = classes ?? someClasses(chance)
    this.edits = this.classes.flatMap(name => EDITS[name])
    this.ids = [...CLIENT_IDS]
    Object.assign(this, { peers: [], frames: [], made: [], threw: {} })
    const some = chance.of(50) ? [chance.pick(versions)] : versions
    const clients = Array.from({ length: 2 + chance.below(3) }, () => chance.pick(some))
    this.hooks = !clients.some(version => WITHOUT_HOOKS.includes(version))
    clients.forEach(version => this.peers.push(new Peer(this, version)))
    try {
      this.run(steps ?? 8 + chance.below(32))
    } finally {
      this.peers.forEach(peer => peer.awareness.destroy()) // it has a timer
    }
    this.deliver()
  }

  stateVectorOf (peer) { return peer.Y.encodeStateVector(peer.doc) }

  run (steps) {
    const { chance, peers, classes, made } = this
    const restores = classes.includes('gc')
    const workAt = chance.of(3) ? chance.below(steps) : -1
    for (let step = 0; step < steps; step++) {
      chance.pick(peers).edit()
      if (step === workAt) chance.pick(peers).work(chance)
      for (let i = chance.below(4); i > 0; i--) chance.pick(peers).hear(chance)
      chance.pick(peers).send(chance)
      if (chance.of(8)) chance.pick(peers).sync(chance, chance.pick(peers))
      if (chance.of(8)) chance.pick(peers).compact(chance, made, chance.pick(peers))
      if (chance.of(3)) chance.pick(peers).reload(chance)
      if (restores && chance.of(10)) chance.pick(peers).restore(chance)
      if (chance.of(8)) chance.pick(peers).show(chance)
    }
    for (const peer of peers) {
      while (chance.of(95) && peer.queue.length > 0) peer.send(chance)
      if (chance.of(30)) peer.sync(chance, chance.pick(peers))
    }
  }

  /** What is on its way may be shuffled, lost, late, or doubled; mostly it is not. */
  deliver () {
    const { chance, frames } = this
    if (chance.of(2) && frames.length > 0) { // somebody else's document, made unreadable for a report
      const updates = frames.filter(([, kind]) => kind === 'u' || kind === 's').map(([, , bytes]) => bytes)
      const Y = modules.get('yjs')
      if (updates.length > 0) {
        this.frames = []
        this.peers[0].tell('u', this.peers[0].try(() => Y.obfuscateUpdate(Y.mergeUpdates(updates))))
      }
      return
    }
    const how = chance.below(10)
    if (how === 0) {
      this.frames = frames.map(frame => [chance.below(2 ** 30), frame]).sort(([a], [b]) => a - b).map(([, frame]) => frame)
    } else if (how === 1) {
      this.frames = frames.filter(() => chance.of(80))
    } else if (how === 2) {
      for (let n = chance.below(6); n > 0 && frames.length > 0; n--) {
        frames.splice(chance.below(frames.length + 1), 0, chance.take(frames))
      }
    } else if (how === 3) {
      this.frames = frames.flatMap(frame => chance.of(20) ? [frame, frame] : [frame])
    }
  }
}

/**
 * All frames that a server gets in a session, in order: who sent it, whether it is an update ('u'), a
 * SyncStep1 ('v') or SyncStep2 ('s'), or awareness ('a'), and its payload. All chance is the seed's.
 */
export const makeHonestSession = request => {
  const { frames, peers, classes, threw } = new HonestSession(request)
  return { frames, classes, versions: peers.map(({ version }) => version), threw }
}
