/**
 * What a document of Yjs is, in strings that are equal if and only if the documents are.
 */
import * as Y from 'yjs'

const sortedEntries = entries => [...entries].sort(([a], [b]) => a < b ? -1 : a > b ? 1 : 0)

/** JSON that tells apart all that Yjs tells apart. */
const canonical = value => {
  if (value === undefined) return ['undefined']
  if (typeof value === 'bigint') return ['bigint', String(value)]
  if (typeof value === 'number') return Object.is(value, -0) ? ['number', '-0'] : ['number', String(value)]
  if (value === null || typeof value !== 'object') return value
  if (value instanceof Uint8Array) return ['binary', Buffer.from(value).toString('base64')]
  if (value instanceof Array) return ['list', value.map(canonical)]
  if (value instanceof Y.Doc) return ['doc', value.guid, value.gc, value.autoLoad, canonical(value.meta)]
  if (value instanceof Y.AbstractType) return canonicalType(value)
  return ['object', sortedEntries(Object.entries(value)).map(([key, item]) => [key, canonical(item)])]
}

export const canonicalType = type => {
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

export const deleteRanges = deletes => canonicalRanges([...deletes.clients].map(
  ([client, items]) => [client, items.map(({ clock, len }) => [clock, len])]))

export const stateVector = bytes => sortedEntries(Y.decodeStateVector(bytes))

/** The ids of structs from a state on. */
export const structRanges = (structs, stateOf) => {
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
export const describe = doc => {
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
