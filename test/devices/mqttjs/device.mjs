// A device of mqtt.js. Its environment is that of ../mosquitto.sh, and so is its
// life: hello, update, progress, reboot, hello, a reboot by command, hello.

import assert from "node:assert/strict"
import {createHash} from "node:crypto"
import {setTimeout as flash} from "node:timers/promises" // what the flash needs for a part of the image
import mqtt from "mqtt"

const {HOST, PORT, ID, PRODUCT, PLATFORM, ARCHITECTURE} = process.env
const foreign = process.env.FOREIGN === "1"
const five = process.env.PROTOCOL === "mqttv5"
const patience = Number(process.env.PATIENCE ?? 60) * 1000
const down = `nh/${ID}/down`, up = `nh/${ID}/up`
let runs = {uuid: process.env.UUID, version: process.env.VERSION}

// A boot is one connection: what it heard, and what it waits for.
class Boot {
  heard = []
  waiting = []

  async start(validated) {
    this.client = await mqtt.connectAsync({
      host: HOST, port: Number(PORT), clientId: ID, username: ID, clean: true, reconnectPeriod: 0,
      protocolVersion: five ? 5 : 4,
      ...(five ? {properties: {receiveMaximum: 4, maximumPacketSize: 4096}} : {}),
      ...(foreign ? {will: {topic: `${up}/online`, payload: "0", qos: 1, retain: true}} : {}),
    }, false)
    this.client.on("message", (topic, payload, packet) => {
      const m = {topic, text: payload.toString(), packet}
      console.log(`hear ${packet.retain ? 1 : 0} ${topic} ${m.text}`)
      this.heard.push(m)
      this.waiting.forEach(look => look())
    })
    const granted = await this.client.subscribeAsync([`${down}/#`, "nh/gateway"], {qos: 1})
    assert(granted.every(g => g.qos === 1), JSON.stringify(granted))
    await this.await("nh/gateway", m => JSON.parse(m.text).state === "online")
    if (foreign) await this.say("online", "1", {retain: true})
    await this.say("hello", JSON.stringify({v: 1, ...runs, product: PRODUCT, platform: PLATFORM, architecture: ARCHITECTURE, validated}))
  }

  async say(name, payload, options = {}) {
    await this.client.publishAsync(`${up}/${name}`, payload, {qos: 1, ...options}) // resolves with PUBACK
    console.log(`say ${name} ${payload}`)
  }

  await(topic, holds) {
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error(`nothing on ${topic} in ${patience} ms`)), patience)
      const look = () => {
        const m = this.heard.find(m => m.topic === topic && holds(m))
        if (m) { clearTimeout(late); resolve(m) }
      }
      this.waiting.push(look)
      look()
    })
  }

  // reset is the loss of power: no DISCONNECT.
  reset() {
    this.client.stream.destroy()
    return this.client.endAsync(true)
  }
}

let boot = new Boot()
await boot.start(true)
await boot.await(`${down}/link`, m => m.text === "up")
console.log("ready")
const offer = await boot.await(`${down}/update`, m => m.text !== "")
assert.equal(offer.packet.retain, false, "the update is retained")
const update = JSON.parse(offer.text)
await boot.say("progress", JSON.stringify({value: 10, stage: "downloading"}))
const answer = await fetch(update.firmware_url)
const image = Buffer.from(await answer.arrayBuffer())
assert.equal(image.length, update.size)
assert.equal(createHash("sha256").update(image).digest("hex").toUpperCase(), update.checksum)
for (const value of [25, 50, 75, 100]) {
  await boot.say("progress", String(value))
  await flash(400)
}
await boot.say("status", JSON.stringify({state: "fwup_complete"})) // an older client's words
await boot.say("rebooting", "{}")
await boot.reset()

runs = {uuid: update.firmware_meta.uuid, version: update.firmware_meta.version}
const second = boot = new Boot()
await boot.start(false)
await boot.await(`${down}/update`, m => m.text === "")
await boot.say("validated", "")
const reboot = await boot.await(`${down}/reboot`, () => true)
assert.equal(reboot.packet.retain, false, "a command is retained")
assert(JSON.parse(reboot.text).ref > 1_700_000_000, reboot.text)
if (five && !foreign) assert(reboot.packet.properties.messageExpiryInterval > 0, "the command does not expire")
await boot.say("rebooting", "{}")
await boot.reset()

boot = new Boot()
await boot.start(true)
await boot.await(`${down}/update`, m => m.text === "")
assert(![...second.heard, ...boot.heard].some(m => m.topic === `${down}/error`), "the gateway refused something")
await boot.reset()
