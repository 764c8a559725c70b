// phoenix.js, the reference client of Phoenix channels, judges the NervesHub
// stand-in: what it cannot talk to is no Phoenix server. It drives a running
// `ganglion hub`; ./run starts one and this file against it.
//
// Environment: HUB (device endpoint, host:port), API (control API, host:port),
// DIR (the hub's --dir, with the devices judge-1, judge-2 and judge-3 issued),
// SECRET (key=secret of a product), EXTENSIONS must include health but not geo.

import assert from "node:assert/strict"
import {createHash, createHmac, pbkdf2Sync} from "node:crypto"
import {readFileSync} from "node:fs"
import {Socket} from "phoenix"
import WebSocket from "ws"

const {HUB, API, DIR, SECRET} = process.env
const ca = readFileSync(`${DIR}/hub-root.pem`)
const deadline = 10_000 // ms; nothing here takes one

// --- connections

const certificate = id => ({
  ca, cert: readFileSync(`${DIR}/devices/${id}.pem`), key: readFileSync(`${DIR}/devices/${id}-key.pem`),
})

// The four headers of a shared secret, signed now - 5 s.
function secretHeaders(id, text = SECRET.slice(SECRET.indexOf("=") + 1), ago = 5) {
  const key = SECRET.slice(0, SECRET.indexOf("="))
  const alg = "NH1-HMAC-sha256-1000-32"
  const time = Math.floor(Date.now() / 1000) - ago
  const salt = `NH1:device-socket:shared-secret:connect\n\nx-nh-alg=${alg}\nx-nh-key=${key}\nx-nh-time=${time}\n`
  const name = Buffer.from(id)
  const term = Buffer.alloc(name.length + 20) // {identifier, milliseconds, 86400} as an external term
  term.set([131, 104, 3, 109])
  term.writeUInt32BE(name.length, 4)
  term.set(name, 8)
  term.set([110, 6, 0], 8 + name.length)
  term.writeUIntLE(time * 1000, 11 + name.length, 6)
  const claims = Buffer.concat([term.subarray(0, 17 + name.length), Buffer.from([98, 0, 1, 81, 128])])
  const signed = `${Buffer.from("HS256").toString("base64url")}.${claims.toString("base64url")}`
  const mac = createHmac("sha256", pbkdf2Sync(text, salt, 1000, 32, "sha256")).update(signed).digest("base64url")
  return {"x-nh-alg": alg, "x-nh-key": key, "x-nh-time": `${time}`, "x-nh-signature": `${signed}.${mac}`}
}

// A phoenix.js Socket over ws with the given TLS and header options. It never
// reconnects by itself, so that an eviction stays one. frames has all messages.
function socket(options, params = {}) {
  const transport = class extends WebSocket {
    constructor(url) { super(url, options) }
  }
  const s = new Socket(`wss://${HUB}/device-socket`, {
    transport, reconnectAfterMs: () => 3_600_000, rejoinAfterMs: () => 100, ...params,
  })
  s.frames = []
  s.onMessage(m => { s.frames.push(m) })
  return s
}

const open = s => settle("open", resolve => { s.onOpen(resolve); s.connect() })
const hangUp = s => settle("disconnect", resolve => s.disconnect(resolve))

// How an upgrade is refused: {status, headers, body}, or {error} if TLS fails.
const refusal = (query, options) => settle("refusal", resolve => {
  const ws = new WebSocket(`wss://${HUB}/device-socket/websocket${query}`, options)
  ws.on("open", () => { ws.close(); resolve({status: 101}) })
  ws.on("error", error => resolve({error: error.message}))
  ws.on("unexpected-response", (_, res) => {
    let body = ""
    res.on("data", b => { body += b })
    res.on("end", () => resolve({status: res.statusCode, headers: res.headers, body}))
  })
})

// --- waiting

function settle(what, start) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no ${what} within ${deadline} ms`)), deadline)
    start(v => { clearTimeout(timer); resolve(v) }, e => { clearTimeout(timer); reject(e) })
  })
}

const pause = ms => new Promise(resolve => { setTimeout(resolve, ms) })
const event = (channel, name) => settle(name, resolve => { channel.on(name, resolve) })
const reply = push => settle("reply", resolve => {
  push.receive("ok", response => resolve({status: "ok", response}))
  push.receive("error", response => resolve({status: "error", response}))
})

// A phx_error is handed to the channel's bindings; onError also sees transport faults.
const crash = channel => settle("phx_error", resolve => { channel.onError(resolve) })

async function frame(s, what, match) {
  for (const end = Date.now() + deadline; Date.now() < end; await pause(10)) {
    const i = s.frames.findIndex(match)
    if (i >= 0) return {...s.frames[i], index: i}
  }
  throw new Error(`no ${what} within ${deadline} ms: ${JSON.stringify(s.frames)}`)
}

// --- the control API

async function api(method, path, body) {
  const res = await fetch(`http://${API}${path}`, {method, body: body && JSON.stringify(body)})
  const text = await res.text()
  if (!res.ok) throw new Error(`${method} ${path}: ${res.status} ${text}`)
  return text ? JSON.parse(text) : null
}

const until = (id, condition) => api("GET", `/devices/${id}?wait=${encodeURIComponent(condition)}&timeout=${deadline}ms`)

// --- what a device says

const firmware = version => ({
  uuid: createHash("sha1").update(version).digest("hex").replace(/^(.{8})(.{4})(.{4})(.{4})(.{12}).*/, "$1-$2-$3-$4-$5"),
  product: "judge", version, platform: "jury", architecture: "arm",
})

const metadata = version => {
  const f = firmware(version)
  return {
    nerves_fw_uuid: f.uuid, nerves_fw_product: f.product, nerves_fw_version: f.version,
    nerves_fw_platform: f.platform, nerves_fw_architecture: f.architecture,
    device_api_version: "2.3.0", meta: {firmware_validated: true, firmware_auto_revert_detected: false},
  }
}

// --- the checks, in order; a later one may build on an earlier one

let passed = 0, failed = 0

async function check(what, test) {
  try {
    await test()
    passed++
    console.log(`ok      ${what}`)
  } catch (e) {
    failed++
    console.log(`FAILED  ${what}: ${e.stack}`)
  }
}

const one = socket(certificate("judge-1"))
let running = "1.0.0"
const device = one.channel("device", () => metadata(running))

await check("a socket opens with a client certificate", () => open(one))

await check("device join is answered with an empty object", async () => {
  assert.deepEqual(await reply(device.join()), {status: "ok", response: {}})
  const join = await frame(one, "join reply", m => m.event === "phx_reply" && m.topic === "device")
  assert.equal(join.join_ref, join.ref)
  const state = await until("judge-1", "joined:true")
  assert.equal(state.metadata.version, "1.0.0")
})

await check("extensions are asked for by a broadcast", async () => {
  const get = await frame(one, "extensions:get", m => m.event === "extensions:get")
  assert.deepEqual([get.join_ref, get.ref, get.topic, get.payload], [null, null, "device", {}])
})

await check("a heartbeat is answered", () => settle("heartbeat", resolve => { assert.ok(one.ping(resolve)) }))

await check("a push on the device channel is not answered", async () => {
  const push = device.push("no_such_event", {a: 1})
  push.receive("ok", () => { push.answered = true }).receive("error", () => { push.answered = true })
  await settle("heartbeat", resolve => { one.ping(resolve) }) // frames are handled in order
  await settle("heartbeat", resolve => { one.ping(resolve) })
  assert.equal(push.answered, undefined)
})

await check("reboot and identify arrive as broadcasts", async () => {
  const reboot = event(device, "reboot"), identify = event(device, "identify")
  await api("POST", "/devices/judge-1/reboot")
  await api("POST", "/devices/judge-1/identify")
  assert.deepEqual([await reboot, await identify], [{}, {}])
})

const image = Buffer.from("not much of a firmware")

await check("an update is pushed and its image can be fetched", async () => {
  await api("POST", "/firmware", {...firmware("1.1.0"), image: image.toString("base64")})
  const update = event(device, "update")
  await api("POST", "/devices/judge-1/update", {version: "1.1.0"})
  const u = await update
  assert.equal(u.update_available, true)
  assert.equal(u.firmware_meta.uuid, firmware("1.1.0").uuid)
  assert.equal(u.firmware_meta.version, "1.1.0")
  assert.equal(u.size, image.length)
  const got = Buffer.from(await (await fetch(u.firmware_url)).arrayBuffer())
  assert.deepEqual(got, image)
  assert.equal(createHash("sha256").update(got).digest("hex").toUpperCase(), u.checksum)
})

await check("statuses and progress are kept", async () => {
  await pause(500) // a status within the commit of the update crashes the channel
  device.push("status_update", {status: "received"})
  await until("judge-1", "inflight.status:received")
  device.push("status_update", {status: "started"})
  device.push("fwup_progress", {value: 40, stage: "downloading"})
  const state = await until("judge-1", "inflight.status:downloading")
  assert.equal(state.inflight.progress, 40)
  device.push("fwup_progress", {value: 100, stage: "completed"})
  await until("judge-1", "inflight.status:completed")
})

await check("joining with the new firmware completes the update", async () => {
  running = "1.1.0"
  await reply(device.leave())
  const again = one.channel("device", () => metadata(running))
  assert.equal((await reply(again.join())).status, "ok")
  const state = await until("judge-1", "metadata.version:1.1.0")
  assert.equal(state.inflight, null)
  assert.equal(state.successes, 1)
  assert.equal((await reply(again.leave())).status, "ok")
})

await check("leave is answered, and followed by phx_close", async () => {
  const c = one.channel("device", metadata(running))
  await reply(c.join())
  const at = one.frames.length
  assert.equal((await reply(c.leave())).status, "ok")
  const close = await frame(one, "phx_close", (m, i) => i >= at && m.event === "phx_close")
  assert.equal(close.join_ref, c.joinRef())
  assert.equal(close.ref, c.joinRef())
})

await check("an unknown topic is unmatched", async () => {
  const wrong = one.channel("devices", metadata(running))
  assert.deepEqual(await reply(wrong.join()), {status: "error", response: {reason: "unmatched topic"}})
  wrong.leave()
})

await check("a second join replaces the first channel: reply, then the late close", async () => {
  const first = one.channel("device", metadata(running))
  await reply(first.join())
  const at = one.frames.length, ref = one.makeRef()
  one.push({topic: "device", event: "phx_join", payload: metadata(running), ref, join_ref: ref})
  const closed = await frame(one, "phx_close", (m, i) => i >= at && m.event === "phx_close")
  const answer = await frame(one, "reply", (m, i) => i >= at && m.event === "phx_reply" && m.ref === ref)
  assert.equal(closed.join_ref, first.joinRef())
  assert.equal(answer.join_ref, ref)
  assert.ok(answer.index < closed.index, "the close of the old channel came first")
  assert.equal(first.state, "closed")
})

const sturdy = one.channel("device", () => metadata(running))

await check("an unknown status crashes the channel, and phoenix.js joins again", async () => {
  await reply(sturdy.join())
  const before = sturdy.joinRef(), crashed = crash(sturdy)
  sturdy.push("status_update", {status: "verifying"})
  assert.deepEqual(await crashed, {reason: "channel_crash"})
  const again = await frame(one, "reply", m => m.event === "phx_reply" && m.join_ref === sturdy.joinRef() && m.ref !== before)
  assert.equal(again.payload.status, "ok")
  assert.equal(sturdy.state, "joined")
  assert.ok(one.isConnected(), "the socket went too")
})

await check("the control API crashes a channel, too", async () => {
  const crashed = crash(sturdy)
  await api("POST", "/devices/judge-1/crash")
  assert.deepEqual(await crashed, {reason: "channel_crash"})
  await until("judge-1", "joined:true")
})

await check("extensions answer the join with an array", async () => {
  const ext = one.channel("extensions", {health: "0.0.1", geo: "0.0.1", unheard: "0.0.1"})
  assert.deepEqual(await reply(ext.join()), {status: "ok", response: ["health"]})
  const asked = event(ext, "health:check")
  ext.push("health:attached", {})
  assert.deepEqual(await asked, {})
  assert.deepEqual(await reply(ext.push("geo:attached", {})), {status: "error", response: "detach"})
})

await check("a frame that is no JSON ends the socket with 1011", async () => {
  const two = socket(certificate("judge-2"))
  await open(two)
  const closed = settle("close", resolve => { two.onClose(resolve) })
  two.connection.transport.send("not json")
  assert.equal((await closed).code, 1011)
})

await check("a newer socket evicts the older one with 1001", async () => {
  const closed = settle("close", resolve => { one.onClose(resolve) })
  const newer = socket(certificate("judge-1"))
  await open(newer)
  assert.equal((await closed).code, 1001)
  const c = newer.channel("device", metadata(running))
  assert.equal((await reply(c.join())).status, "ok")
  await hangUp(newer)
})

await check("an operator's reconnect closes with 1001", async () => {
  const s = socket(certificate("judge-2"))
  await open(s)
  await reply(s.channel("device", metadata(running)).join())
  const closed = settle("close", resolve => { s.onClose(resolve) })
  await api("POST", "/devices/judge-2/reconnect")
  assert.equal((await closed).code, 1001)
})

await check("any protocol version but 2.0.x is refused with 403", async () => {
  for (const query of ["", "?vsn=1.0.0", "?vsn=2.1.0"]) {
    const r = await refusal(query, certificate("judge-2"))
    assert.equal(r.status, 403, query)
    assert.equal(r.body, "")
  }
})

await check("no credentials are told so", async () => {
  const r = await refusal("?vsn=2.0.0", {ca})
  const text = "no certificate pair or shared secrets connection settings were provided"
  assert.deepEqual([r.status, r.headers["nh-connection-error-reason"], r.body], [401, text, text])
})

await check("a shared secret opens a socket and creates the device", async () => {
  const s = socket({ca, headers: secretHeaders("judge-secret")})
  await open(s)
  assert.deepEqual(await reply(s.channel("device", metadata(running)).join()), {status: "ok", response: {}})
  assert.equal((await until("judge-secret", "joined:true")).metadata.version, running)
  await hangUp(s)
})

await check("a wrong or old signature is refused without a reason", async () => {
  for (const headers of [secretHeaders("judge-secret", "wrong"), secretHeaders("judge-secret", undefined, 100), secretHeaders("judge-secret", undefined, -5)]) {
    const r = await refusal("?vsn=2.0.0", {ca, headers})
    assert.deepEqual([r.status, r.headers["nh-connection-error-reason"], r.body], [401, undefined, ""])
  }
})

await check("the certificate of a deleted device meets a handshake failure", async () => {
  await api("DELETE", "/devices/judge-3")
  assert.match((await refusal("?vsn=2.0.0", certificate("judge-3"))).error, /handshake failure/)
})

console.log(`${passed} passed, ${failed} failed`)
process.exit(failed ? 1 : 0)
