/**
 * Random editing sessions: what a server could receive from a few Yjs clients that edit at once.
 *
 * All chance comes from the seed, so a seed names a session for good. Clients have few kinds of
 * edits, but do them concurrently, on links that delay and reorder: that is where updates get
 * interesting.
 */
import * as prng from 'lib0/prng'
import * as Y from 'yjs'

export const REMOTE = 'remote'
export const MAX_DEPTH = 4
export const KEYS = ['a', 'b', 'ключ', '🔑']
export const CLIENT_IDS = [0, 1, 2, 63, 64, 127, 128, 300, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 2, 2 ** 32 - 1]
export const WORDS = [
  'a', 'word', ' ', 'two words\n', '😀', '👩‍👩‍👧‍👦', 'x😀y', '🇩🇪', '漢字', '日本語の文', '𠮷', 'e\u0301', 'Z͑ͫ̓a̴l',
  'שלום', '\0', '\ufffd', 'long '.repeat(40)
]
export const HALVES = ['\ud83d', '\ude00', 'a\ud83d', '\ude00b', '😀😀😀']
export const FORMATS = [
  { bold: true }, { bold: null }, { italic: true }, { italic: null }, { color: 'red' }, { color: '😀' },
  { link: { href: 'https://example.org/?q=ü' } }, { link: null }, { bold: true, size: 1.5 }
]
export const EMBEDS = [{ image: 'a.png' }, { formula: 'ü²', nested: [1, null, { deep: '😀' }] }, {}, { n: -0.5 }]
export const VALUES = [
  undefined, null, true, false, 0, -0, 1, -1, 63, 64, -64, 127, 128, 2 ** 31 - 1, 2 ** 31, -(2 ** 31),
  2 ** 53 - 1, -(2 ** 53 - 1), 2 ** 60, 0.5, -1.25, 0.1, 1e300, 5e-324, NaN, Infinity, 0n, -1n, 2n ** 63n - 1n,
  -(2n ** 63n), '', 'text', '😀', 'é'.repeat(70), {}, [], { a: undefined, 'ü': [1n, -0, null] },
  [[[], {}], { deep: [{ er: new Uint8Array([1, 2]) }] }], new Uint8Array([]), new Uint8Array([0, 255, 128])
]

/** In an array Yjs throws on `undefined` and bigints, unless they are nested in something. */
export const listable = value => value !== undefined && typeof value !== 'bigint'

/** Legacy values: JSON, in which lists and `undefined` may be. */
const JSON_VALUES = [undefined, null, 'undefined', '😀', 1.5, [1, [2]], { a: { b: null } }]

/** What the seed decides. */
export class Chance {
  constructor (seed) { this.generator = prng.create(seed) }
  /** 0 <= number < end */
  below (end) { return prng.int32(this.generator, 0, end - 1) }
  of (percent) { return this.below(100) < percent }
  pick (list) { return list[this.below(list.length)] }
  take (list) { return list.splice(this.below(list.length), 1)[0] }
}

/** All types in the document that are not deleted, with the depth they are at. */
export const liveTypes = (Y, doc) => {
  const found = []
  const visit = (type, depth) => {
    found.push({ type, depth })
    const items = [...type._map.values()]
    for (let item = type._start; item !== null; item = item.right) items.push(item)
    for (const item of items) {
      if (!item.deleted && item.content instanceof Y.ContentType) visit(item.content.type, depth + 1)
    }
  }
  doc.share.forEach(type => visit(type, 0))
  return found
}

/**
 * One client's hands. Every method is one edit; which of them are used depends on the classes. `Y` is
 * the Yjs that the document is of, 13 of any version.
 */
export class Editor {
  constructor (Y, doc, chance, classes) {
    this.Y = Y
    this.doc = doc
    this.chance = chance
    this.splits = classes.includes('surrogates')
    this.hasXml = classes.includes('xml')
    this.roots = [doc.getText('t'), doc.getMap('m'), doc.getArray('a'), doc.get('x', Y.XmlFragment)]
    // No time: every transaction is one step to undo.
    this.history = classes.includes('undo') ? new Y.UndoManager(this.roots, { captureTimeout: 0 }) : null
    this.guids = 0
  }

  find (...kinds) {
    return this.chance.pick(liveTypes(this.Y, this.doc).filter(({ type }) => kinds.some(kind => type instanceof kind)))
  }

  /** A place in a text: between whole characters, unless surrogate pairs are to be split. */
  place (text, from = 0) {
    const index = from + this.chance.below(text.length - from + 1)
    if (this.splits) return index
    const units = text.toDelta().map(({ insert }) => typeof insert === 'string' ? insert : '\0').join('')
    return /^[\ud800-\udbff][\udc00-\udfff]/.test(units.slice(index - 1)) ? index - 1 : index
  }

  words () {
    return this.chance.pick(this.splits && this.chance.of(60) ? HALVES : WORDS)
  }

  /** A copy, for Yjs writes into it. */
  format () {
    return { ...this.chance.pick(FORMATS) }
  }

  newType (depth) {
    const kinds = [
      () => new this.Y.Text(this.words()),
      () => new this.Y.Map([['a', this.chance.pick(VALUES)], ['b', depth < MAX_DEPTH ? this.newType(depth + 1) : 0]]),
      () => this.Y.Array.from([1, 'two', depth < MAX_DEPTH ? this.newType(depth + 1) : null])
    ]
    return this.chance.pick(this.hasXml ? [...kinds, () => this.newXml()] : kinds)()
  }

  newXml () {
    return this.chance.pick([
      () => new this.Y.XmlElement(this.chance.pick(['p', 'h1', 'emoji😀'])),
      () => new this.Y.XmlText(this.words()),
      () => new this.Y.XmlHook('hook')
    ])()
  }

  writeText () {
    const { type } = this.find(this.Y.Text)
    type.insert(this.place(type), this.words(), ...this.chance.of(30) ? [this.format()] : [])
  }

  /** One transaction a character: what Yjs squashes into one struct again. */
  typeText () {
    const { type } = this.find(this.Y.Text)
    let at = this.place(type)
    for (const character of this.words().slice(0, 12)) {
      type.insert(at, character)
      at += character.length
    }
    if (at > 0 && this.chance.of(30)) this.deleteFrom(type, at - 1)
  }

  deleteFrom (type, start, end = start + 1) {
    if (type.length > start) type.delete(start, Math.min(end, type.length) - start)
  }

  deleteText () {
    const { type } = this.find(this.Y.Text)
    const start = this.place(type)
    this.deleteFrom(type, start, start + this.chance.below(this.chance.of(80) ? 5 : type.length + 1))
  }

  formatText () {
    const { type } = this.find(this.Y.Text)
    const start = this.place(type)
    type.format(start, this.place(type, start) - start, this.format())
  }

  embed () {
    const { type, depth } = this.find(this.Y.Text)
    const embed = depth < MAX_DEPTH && this.chance.of(30) ? this.newType(depth + 1) : this.chance.pick(EMBEDS)
    type.insertEmbed(this.place(type), embed, this.chance.of(30) ? this.format() : {})
  }

  put (value) {
    const { type } = this.find(this.Y.Map, this.Y.Array, this.Y.XmlElement)
    if (type instanceof this.Y.Map) {
      type.set(this.chance.pick(KEYS), value)
    } else if (type instanceof this.Y.XmlElement && !(value instanceof this.Y.AbstractType || value instanceof this.Y.Doc)) {
      type.setAttribute(this.chance.pick(KEYS), value)
    } else if (type instanceof this.Y.Array && listable(value)) {
      type.insert(this.chance.below(type.length + 1), [value])
    }
  }

  putValue () {
    this.put(this.chance.pick(VALUES))
  }

  putValues () {
    const { type } = this.find(this.Y.Array)
    const values = VALUES.filter(value => listable(value) && this.chance.of(15))
    type.insert(this.chance.below(type.length + 1), values)
  }

  putBinary () {
    this.put(Uint8Array.from({ length: this.chance.below(5) }, () => this.chance.below(256)))
  }

  putSubdocument () {
    const options = { guid: `${this.doc.clientID}-${this.guids++}` }
    if (this.chance.of(30)) options.autoLoad = true
    if (this.chance.of(30)) options.gc = false
    if (this.chance.of(30)) options.meta = this.chance.pick(VALUES.filter(value => value !== undefined))
    this.put(new this.Y.Doc(options))
  }

  nest () {
    const { type, depth } = this.find(this.Y.Map, this.Y.Array)
    if (depth >= MAX_DEPTH) return
    const value = this.newType(depth + 1)
    if (type instanceof this.Y.Map) type.set(this.chance.pick(KEYS), value)
    else type.insert(this.chance.below(type.length + 1), [value])
  }

  deleteSomething () {
    const { type } = this.find(this.Y.Map, this.Y.Array, this.Y.XmlFragment)
    if (type instanceof this.Y.Map) return type.delete(this.chance.pick(KEYS))
    const start = this.chance.below(type.length + 1)
    this.deleteFrom(type, start, start + 1 + this.chance.below(3))
  }

  nestXml () {
    const { type, depth } = this.find(this.Y.XmlFragment)
    if (depth < MAX_DEPTH) type.insert(this.chance.below(type.length + 1), [this.newXml()])
  }

  setAttribute () {
    const { type } = this.find(this.Y.XmlElement, this.Y.XmlText, this.Y.XmlFragment)
    if (!(type instanceof this.Y.XmlElement || type instanceof this.Y.XmlText)) return
    if (this.chance.of(70)) type.setAttribute(this.chance.pick(KEYS), this.words())
    else type.removeAttribute(this.chance.pick(KEYS))
  }

  /** ContentJSON: only Yjs before 13.0 wrote it, so there is no API for it any more. */
  putJson () {
    const { type } = this.find(this.Y.Array)
    this.doc.transact(transaction => {
      let left = null
      for (let item = type._start; item !== null && this.chance.of(70); item = item.right) left = item
      const right = left === null ? type._start : left.right
      const id = this.Y.createID(this.doc.clientID, this.Y.getState(this.doc.store, this.doc.clientID))
      const content = new this.Y.ContentJSON(Array.from({ length: 1 + this.chance.below(4) }, () => this.chance.pick(JSON_VALUES)))
      new this.Y.Item(id, left, left && left.lastId, right, right && right.id, type, null, content).integrate(transaction, 0)
      type._searchMarker.length = 0 // Yjs's cache of positions, which its own insert would have moved
    })
  }

  undo () { this.history.undo() }
  redo () { this.history.redo() }
}

/** Which edits a class of features brings; the same one twice is twice as likely. */
export const EDITS = {
  text: ['writeText', 'typeText', 'typeText', 'deleteText', 'formatText'],
  surrogates: ['writeText', 'typeText', 'deleteText', 'deleteText'],
  nested: ['nest', 'nest', 'putValue', 'writeText', 'deleteText', 'deleteSomething', 'deleteSomething'],
  xml: ['nestXml', 'nestXml', 'setAttribute', 'typeText', 'formatText', 'deleteSomething'],
  embeds: ['embed', 'embed', 'writeText', 'deleteText'],
  subdocs: ['putSubdocument', 'deleteSomething'],
  binary: ['putBinary', 'deleteSomething'],
  values: ['putValue', 'putValues', 'deleteSomething'],
  json: ['putJson', 'putJson', 'putValues', 'deleteSomething'],
  undo: ['undo', 'undo', 'redo', 'typeText', 'deleteText', 'putValue'],
  // Not edits of their own: documents that keep deleted content, and what is sent (see below).
  gc: ['typeText', 'nest', 'deleteText', 'deleteSomething'],
  skips: ['typeText']
}

/** Some of the classes of features, as a session has them by default. */
export const someClasses = chance => {
  const classes = Object.keys(EDITS)
  return Array.from({ length: 2 + chance.below(5) }, () => chance.take(classes))
}

/**
 * All updates a server could have received in one session, in one natural order: what a client did
 * arrives in order, but clients may be far apart, so deletes come before what they delete.
 */
export const makeSession = ({ seed, clients = 4, steps, classes }) => {
  const chance = new Chance(seed)
  classes ??= someClasses(chance)
  steps ??= 25 + chance.below(50)
  const ids = [...CLIENT_IDS]
  const updates = []
  const made = []
  const edits = classes.flatMap(name => EDITS[name])
  const peers = Array.from({ length: clients }, () => {
    const doc = new Y.Doc({ gc: !classes.includes('gc') || chance.of(50) })
    doc.clientID = chance.of(50) ? chance.take(ids) : 1000 + chance.below(2 ** 31 - 2000)
    const peer = { doc, editor: new Editor(Y, doc, chance, classes), toServer: [], toPeers: [] }
    doc.on('update', (update, origin) => {
      if (origin === REMOTE) return
      made.push(update)
      peer.toServer.push(update)
      peer.toPeers.filter(queue => queue !== null).forEach(queue => queue.push(update))
    })
    return peer
  })
  peers.forEach((peer, i) => { peer.toPeers = peers.map((_, j) => i === j ? null : []) })

  for (let step = 0; step < steps; step++) {
    const { doc, editor } = chance.pick(peers)
    const edit = () => editor[chance.pick(edits)]()
    if (chance.of(85)) edit()
    else doc.transact(() => { edit(); edit(); edit() })

    for (let i = chance.below(4); i > 0; i--) { // a link carries some of its updates, mostly in order
      const from = chance.pick(peers)
      const to = chance.below(clients)
      const queue = from.toPeers[to]
      for (let n = chance.below(6); queue !== null && n > 0 && queue.length > 0; n--) {
        Y.applyUpdate(peers[to].doc, chance.of(85) ? queue.shift() : chance.take(queue), REMOTE)
      }
    }
    updates.push(...chance.pick(peers).toServer.splice(0, chance.below(8)))

    const other = () => Y.encodeStateVector(chance.pick(peers).doc)
    if (chance.of(classes.includes('gc') ? 8 : 1)) {
      updates.push(Y.encodeStateAsUpdate(doc, ...chance.of(50) ? [other()] : []))
    }
    if (made.length > 0 && chance.of(classes.includes('skips') ? 12 : 1)) {
      const merged = Y.mergeUpdates(Array.from({ length: 2 + chance.below(6) }, () => chance.pick(made)))
      updates.push(chance.of(70) ? merged : Y.diffUpdate(merged, other()))
    }
  }
  // Now and then a client is gone before all it did has arrived.
  for (const { toServer } of peers) updates.push(...toServer.slice(0, chance.of(90) ? undefined : chance.below(toServer.length + 1)))
  return { updates, classes }
}

/** The updates that a client makes who knows these and edits so often. */
export const edit = ({ updates, client, seed, edits }) => {
  const chance = new Chance(seed)
  const doc = new Y.Doc()
  updates.forEach(update => Y.applyUpdate(doc, update, REMOTE))
  doc.clientID = client // not before: Yjs takes another if its own edits come back
  const classes = ['text', 'nested', 'xml', 'embeds', 'binary', 'values']
  const editor = new Editor(Y, doc, chance, classes)
  const made = []
  doc.on('update', update => made.push(update))
  const kinds = classes.flatMap(name => EDITS[name])
  for (let i = 0; i < edits; i++) editor[chance.pick(kinds)]()
  return made
}
