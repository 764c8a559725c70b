package bridge

import "encoding/json"

// This file is the contract between devices and NervesHub: every name a device
// may publish and every event of the "device" channel it may be told is one
// row here, and nothing else in the program decides what becomes what.
//
//	device → NervesHub   <prefix>/<device>/up/<name>
//	NervesHub → device   <prefix>/<device>/down/<name>

// An upRow carries what a device publishes.
type upRow struct {
	name    string
	event   string // the NervesHub event it becomes; "" when it stays here
	durable bool   // the device sends it again unless it was acknowledged
	latest  bool   // only the newest matters: it replaces one still waiting
	limit   int    // largest payload, bytes
	take    func(c *core, payload []byte) *refusal
}

var upRows = []upRow{
	{name: "hello", event: "phx_join", durable: true, limit: 4096, take: (*core).hello},
	{name: "progress", event: "fwup_progress", latest: true, limit: 256, take: (*core).progress},
	{name: "status", event: "status_update", durable: true, limit: 2048, take: (*core).status},
	{name: "validated", event: "firmware_validated", durable: true, limit: 256, take: (*core).validated},
	{name: "rebooting", event: "rebooting", limit: 256, take: (*core).rebooting},
	{name: "interface", event: "report_network_interface", latest: true, limit: 512, take: (*core).iface},
	{name: "online", limit: 16, take: func(*core, []byte) *refusal { return nil }}, // presence is the Bus's
}

// A downRow carries an event of the "device" channel.
type downRow struct {
	event string
	name  string // what the device sees; "" when the gateway answers itself
	carry func(c *core, r *downRow, payload json.RawMessage)
}

var downRows = []downRow{
	{event: "update", name: "update", carry: (*core).offered},
	{event: "reboot", name: "reboot", carry: (*core).command},
	{event: "identify", name: "identify", carry: (*core).command},
	{event: "scripts/run", carry: (*core).refuseScript},
}

// What the gateway says of its own accord.
const (
	downUpdate = "update"
	downReboot = "reboot"
	downLink   = "link"
	downError  = "error"
)

func upRowFor(name string) *upRow {
	for i := range upRows {
		if upRows[i].name == name {
			return &upRows[i]
		}
	}
	return nil
}

func downRowFor(event string) *downRow {
	for i := range downRows {
		if downRows[i].event == event {
			return &downRows[i]
		}
	}
	return nil
}

// A Row is one line of the contract, for the tests and the documents that must
// agree with it.
type Row struct {
	Up, Durable, Latest bool
	Name, Event         string
	Limit               int // largest payload a device may publish, bytes
}

// Contract lists every row.
func Contract() []Row {
	var rows []Row
	for _, r := range upRows {
		rows = append(rows, Row{Up: true, Durable: r.durable, Latest: r.latest, Name: r.name, Event: r.event, Limit: r.limit})
	}
	for _, r := range downRows {
		rows = append(rows, Row{Name: r.name, Event: r.event})
	}
	return append(rows, Row{Name: downLink}, Row{Name: downError})
}

// A code is the machine-readable part of a message on down/error.
type code string

const (
	codeBadPayload     code = "bad_payload"
	codeUnknownName    code = "unknown_name"
	codeUnknownStatus  code = "unknown_status"
	codeNoUpdate       code = "no_update"
	codeAlreadyFinal   code = "already_final"
	codeTooLarge       code = "too_large"
	codeRetained       code = "retained"
	codeIncomplete     code = "incomplete"
	codeBadVersion     code = "bad_version"
	codeConflict       code = "conflict"
	codePacketTooSmall code = "packet_too_small"
	codeUnsupported    code = "unsupported"
	codeBusy           code = "busy"
)

// Codes lists every code the gateway can publish on down/error.
func Codes() []string {
	return []string{string(codeBadPayload), string(codeUnknownName), string(codeUnknownStatus), string(codeNoUpdate),
		string(codeAlreadyFinal), string(codeTooLarge), string(codeRetained), string(codeIncomplete), string(codeBadVersion),
		string(codeConflict), string(codePacketTooSmall), string(codeUnsupported), string(codeBusy)}
}

// A refusal is why something a device published was not taken.
type refusal struct {
	code   code
	reason string // one sentence a firmware engineer can act on
}
