/**
 * What Yjs makes of updates, asked by JSON lines: one request a line on stdin, {op, ...arguments},
 * one answer a line on stdout, or {error}. Updates and state vectors are base64.
 */
import { createInterface } from 'node:readline'
import * as Y from 'yjs'
import { VERSIONS, load, makeHonestSession } from './oracle_honest.mjs'
import { edit, makeSession } from './oracle_sessions.mjs'

// Yjs says things, too: answers are all that goes to stdout.
console.log = console.error

const decode = text => new Uint8Array(Buffer.from(text, 'base64'))
const encode = bytes => Buffer.from(bytes).toString('base64')

const sortedEntries = entries => [...entries].sort(([a], [b]) => a < b ? -1 : a > b ? 1 : 0)

/** JSON that tells apart all that Yjs tells apart. */
const canonical = value => {
  if (value === undefined) return ['undefined']
  if (typeof value === 'bigint') return ['bigint', String(value)]
  if (typeof value === 'number') return Object.is(value, -0) ? ['number', '-0'] : ['number', String(value)]
  if (value === null || typeof value !== 'object') return value
  if (value instanceof Uint8Array) return ['binary', encode(value)]
  if (value instanceof Array) return ['list', value.map(canonical)]
  if (value instanceof Y.Doc) return ['doc', value.guid, value.gc, value.autoLoad, canonical(value.meta)]
  if (value instanceof Y.AbstractType) return canonicalType(value)
  return ['object', sortedEntries(Object.entries(value)).map(([key, item]) => [key, canonical(item)])]
}

const canonicalType = type => {
  const entries = entries => sortedEntries(entries).map(([key, value]) => [key, canonical(value)])
  const attributes = () => entries(Object.entries(type.getAttributes()))
  // Subclasses first.
  if (type instanceof Y.XmlText) return ['XmlText', attributes(), canonical(type.toDelta())]
  if (type instanceof Y.Text) return ['Text', canonical(type.toDelta())]
  if (type instanceof Y.XmlHook) return ['XmlHook', type.hookName, entries(type.entries())]
  if (type instanceof Y.Map) return ['Map', entries(type.entries())]
  if (type instanceof Y.Array) return ['Array', type.toArray().map(canonical)]
  if (type instanceof Y.XmlElement) return ['XmlElement', type.nodeName, attributes(), type.toArray().map(canonical)]
  if (type instanceof Y.XmlFragment) return ['XmlFragment', type.toArray().map(canonical)]
  throw new Error(`type without a canonical form: ${type.constructor.name}`)
}

/** Ranges [clock, length] of each client, [[client, ranges]], sorted, and joined where they touch. */
const canonicalRanges = clients => sortedEntries(clients).map(([client, ranges]) => {
  const joined = []
  for (const [clock, length] of ranges.sort((a, b) => a[0] - b[0])) {
    const last = joined.at(-1)
    if (last !== undefined && clock <= last[0] + last[1]) last[1] = Math.max(last[1], clock + length - last[0])
    else joined.push([clock, length])
  }
  return [client, joined]
})

const deleteRanges = deletes => canonicalRanges([...deletes.clients].map(
  ([client, items]) => [client, items.map(({ clock, len }) => [clock, len])]))

const stateVector = bytes => sortedEntries(Y.decodeStateVector(bytes))

/** The ids of structs from a state on. */
const structRanges = (structs, stateOf) => {
  const clients = new Map()
  for (const { id, length, constructor } of structs) {
    const known = Math.max(stateOf(id.client) - id.clock, 0)
    if (constructor === Y.Skip || known >= length) continue
    if (!clients.has(id.client)) clients.set(id.client, [])
    clients.get(id.client).push([id.clock + known, length - known])
  }
  return canonicalRanges(clients)
}

/** The ids of structs that wait; Yjs may keep some that were integrated meanwhile, these don't count. */
const pendingStructs = ({ store }) => store.pendingStructs === null
  ? []
  : structRanges(Y.decodeUpdateV2(store.pendingStructs.update).structs, client => Y.getState(store, client))

/** Which structs and deletes an update speaks of. */
const idsIn = update => {
  const { structs, ds } = Y.decodeUpdate(update)
  return JSON.stringify({ structs: structRanges(structs, () => 0), deletes: deleteRanges(ds) })
}

/**
 * The origins of all that is not deleted: [client, clock, length, origin, right origin], whatever
 * way it is cut into structs. Nothing shows them, but later edits go wrong if they are wrong.
 */
const origins = ({ store }) => {
  const runs = []
  for (const [client, structs] of sortedEntries(store.clients)) {
    let last = null
    for (const item of structs) {
      if (item.deleted) continue
      const { id: { clock }, length, rightOrigin, origin } = item
      if (last !== null && last.end === clock && Y.compareIDs(last.rightOrigin, rightOrigin) &&
          Y.compareIDs(origin, { client, clock: clock - 1 })) {
        last.end += length
      } else {
        last = { client, clock, end: clock + length, origin, rightOrigin }
        runs.push(last)
      }
    }
  }
  return runs
}

/** All that has to agree, each aspect as a string. */
const describe = doc => {
  const roots = [doc.getText('t'), doc.getMap('m'), doc.getArray('a'), doc.get('x', Y.XmlFragment)]
  const aspects = {
    content: roots.map(canonicalType),
    'state vector': stateVector(Y.encodeStateVector(doc)),
    'delete set': deleteRanges(Y.createDeleteSetFromStructStore(doc.store)),
    'pending structs': pendingStructs(doc),
    'pending deletes': doc.store.pendingDs === null ? [] : deleteRanges(Y.decodeUpdateV2(doc.store.pendingDs).ds),
    origins: origins(doc)
  }
  return Object.fromEntries(Object.entries(aspects).map(([name, value]) => [name, JSON.stringify(value)]))
}

const docOf = (updates, gc) => {
  const doc = new Y.Doc({ gc })
  for (const update of updates) Y.applyUpdate(doc, update)
  return doc
}

/** Where texts begin to differ; whole ones don't fit on a screen. */
const excerpts = texts => {
  const [first, ...others] = Object.values(texts)
  let at = 0
  while (at < first.length && others.every(text => text[at] === first[at])) at++
  const start = Math.max(at - 60, 0)
  return Object.fromEntries(Object.entries(texts).map(([name, text]) => [name, text.slice(start, start + 300)]))
}

const differing = (a, b) => Object.keys(a).filter(name => a[name] !== b[name])

/**
 * Have Yjs try again to integrate what it holds back. It should never need to be told, but it
 * forgets the clock it waits for if the same client has a hole further on, and then waits too long.
 */
const retried = doc => {
  Y.applyUpdate(doc, Y.encodeStateAsUpdate(doc))
  return doc
}

/**
 * Compare documents with what Yjs makes of `deliveries`. A view is a fresh document that got the
 * first `have` of them and then `updates`. These must speak of the same structs and deletes as Yjs's
 * own diff for someone who has the first `have` does. The document agrees as
 * - "doc" if it equals the document that got all deliveries,
 * - "merged" if it equals the one that got Y.mergeUpdates of them,
 * - "diffed" if it equals the one that got the first `have`, and then Yjs's own diff of the merged,
 * - "retried" if it equals one of these after both were retried, but perhaps for format marks that
 *   show nowhere,
 * - "contested" if it equals none of them, and was said to be so.
 * Rarely these differ among themselves, for cleaning up formats and splitting surrogate pairs depend
 * on what comes in which transaction.
 */
const check = ({ deliveries, views, stateVectors, gc = true }) => {
  deliveries = deliveries.map(decode)
  const merged = Y.mergeUpdates(deliveries)
  const expected = stateVector(Y.encodeStateVectorFromUpdate(merged))
  for (const bytes of stateVectors) {
    const got = stateVector(decode(bytes))
    if (JSON.stringify(got) !== JSON.stringify(expected)) return { ok: false, what: 'the state vector', detail: { got, expected } }
  }
  const make = {
    doc: () => docOf(deliveries, gc),
    merged: () => docOf([merged], gc),
    diffed: have => {
      const doc = docOf(deliveries.slice(0, have), gc)
      Y.applyUpdate(doc, Y.diffUpdate(merged, Y.encodeStateVector(doc)))
      return doc
    }
  }
  const ofDoc = describe(make.doc())
  const ofMerged = describe(make.merged())
  const verdictOn = (doc, got, have) => {
    if (differing(got, ofDoc).length === 0) return 'doc'
    if (differing(got, ofMerged).length === 0) return 'merged'
    if (differing(got, describe(make.diffed(have))).length === 0) return 'diffed'
    const gotRetried = describe(retried(doc))
    // Which format marks Yjs cleans up depends on its transactions, which are others then.
    const agrees = reference => differing(gotRetried, describe(retried(reference(have))))
      .every(aspect => aspect === 'delete set' || aspect === 'origins')
    return Object.values(make).some(agrees) ? 'retried' : null
  }
  const as = []
  for (const { name, have, updates, contested } of views) {
    const doc = docOf(deliveries.slice(0, have), gc)
    const rest = Y.diffUpdate(merged, Y.encodeStateVector(doc))
    for (const update of updates) Y.applyUpdate(doc, decode(update))
    const ids = { got: idsIn(Y.mergeUpdates(updates.map(decode))), expected: idsIn(rest) }
    if (ids.got !== ids.expected) return { ok: false, what: `which ids are in ${name}`, detail: excerpts(ids) }
    const got = describe(doc)
    const verdict = verdictOn(doc, got, have) ?? (contested ? 'contested' : null)
    if (verdict === null) {
      const detail = differing(got, ofDoc).map(aspect => ({ aspect, ...excerpts({ got: got[aspect], doc: ofDoc[aspect], merged: ofMerged[aspect] }) }))
      return { ok: false, what: name, detail }
    }
    as.push(verdict)
  }
  return { ok: true, as }
}

/** What a client sees that got these updates one by one; or where Yjs threw. */
const seenBy = updates => {
  const doc = new Y.Doc()
  for (const [at, update] of updates.entries()) {
    try {
      Y.applyUpdate(doc, decode(update))
    } catch (error) {
      return { threw: `at ${at}: ${error.stack}` }
    }
  }
  let content
  try {
    const roots = [doc.getText('t'), doc.getMap('m'), doc.getArray('a'), doc.get('x', Y.XmlFragment)]
    content = JSON.stringify(roots.map(canonicalType))
  } catch (error) {
    content = `unreadable: ${error.message}`
  }
  return { content, stateVector: JSON.stringify(stateVector(Y.encodeStateVector(doc))) }
}

const operations = {
  check,

  /** What several clients see, each by the updates it got. */
  seen ({ clients }) {
    return { seen: clients.map(seenBy) }
  },

  session (request) {
    const { updates, classes } = makeSession(request)
    return { updates: updates.map(encode), classes }
  },

  /** What a server gets in honest sessions, one for each seed (see `makeHonestSession`). */
  async honest ({ seeds, versions = VERSIONS, ...request }) {
    await load(versions.includes('yjs') ? versions : [...versions, 'yjs'])
    return {
      sessions: seeds.map(seed => {
        const { frames, ...session } = makeHonestSession({ ...request, versions, seed })
        return { ...session, frames: frames.map(([client, kind, bytes]) => [client, kind, encode(bytes)]) }
      })
    }
  },

  /** What a client does who knows these updates. */
  edit ({ updates, ...request }) {
    return { updates: edit({ updates: updates.map(decode), ...request }).map(encode) }
  },

  /** Y.mergeUpdates of each group. */
  merge ({ groups }) {
    return { updates: groups.map(group => encode(Y.mergeUpdates(group.map(decode)))) }
  },

  /**
   * What clients send that got these updates, which need not be all that there is before them: their
   * whole state, structs that wait for others included. It keeps what is deleted.
   */
  states ({ groups }) {
    return { updates: groups.map(group => encode(Y.encodeStateAsUpdate(docOf(group.map(decode), false)))) }
  },

  /** Y.diffUpdate of each merged group, for one who has all groups before it. */
  diffs ({ groups }) {
    const doc = new Y.Doc({ gc: false })
    return {
      updates: groups.map(group => {
        const merged = Y.mergeUpdates(group.map(decode))
        const diff = Y.diffUpdate(merged, Y.encodeStateVector(doc))
        Y.applyUpdate(doc, merged)
        return encode(diff)
      })
    }
  },

  /** The state vectors of a document that got the first `at` of the deliveries, for each `at`. */
  state_vectors ({ deliveries, at }) {
    const doc = new Y.Doc()
    const vectors = [Y.encodeStateVector(doc)]
    for (const update of deliveries) {
      Y.applyUpdate(doc, decode(update))
      vectors.push(Y.encodeStateVector(doc))
    }
    return { stateVectors: at.map(index => encode(vectors[index])) }
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer
  try {
    const { op, ...request } = JSON.parse(line)
    answer = await operations[op](request)
  } catch (error) {
    answer = { error: error.stack }
  }
  process.stdout.write(JSON.stringify(answer) + '\n')
}
