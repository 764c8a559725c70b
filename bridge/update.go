package bridge

import (
	"encoding/json"
	"time"
)

const (
	// commitRace is how long after update a status crashes the channel: the
	// event is broadcast inside the transaction that inserts its row.
	commitRace = 500 * time.Millisecond
	// rowLife is how long NervesHub keeps an update whose stored state does not
	// change. Any status after that would create a phantom, or crash the channel.
	rowLife = 30 * time.Minute
	// storeEvery is how often NervesHub stores progress within one status.
	storeEvery = 15 * time.Second
	// progressEvery bounds progress upstream: more is only cosmetic.
	progressEvery = time.Second
)

// An offer is NervesHub's update event. Fields it may leave out (size and
// checksum, by servers up to 2.4.0) are not needed to pass it on.
type offer struct {
	Available bool   `json:"update_available"`
	URL       string `json:"firmware_url"`
	Checksum  string `json:"checksum"` // of the file behind URL, upper-case hex SHA-256
	Meta      struct {
		UUID         string `json:"uuid"`
		Version      string `json:"version"`
		Product      string `json:"product"`
		Platform     string `json:"platform"`
		Architecture string `json:"architecture"`
	} `json:"firmware_meta"`
}

func (o offer) image() image {
	return image{UUID: o.Meta.UUID, Version: o.Meta.Version, Product: o.Meta.Product,
		Platform: o.Meta.Platform, Architecture: o.Meta.Architecture, SHA256: o.Checksum}
}

// An update is one firmware NervesHub wants this device to run: what the device
// has said about it, and what of that NervesHub has been told. The two are kept
// apart so that a dead link, a short one and none at all need no special case:
// whenever the channel is joined, due says what is still to be told.
type update struct {
	image   image
	payload json.RawMessage // NervesHub's own; it holds a signed URL

	// What the device said.
	word   word // the furthest word, or the terminal one
	stage  word // of the progress, downloading or updating; none: no progress yet
	value  int  // percent; -1: not said
	reason string
	delay  time.Duration // of rescheduled

	// What NervesHub was told.
	row       bool      // it has a row for this update, as far as is known
	rowAt     time.Time // when the row was created or last stored a change
	quietTill time.Time // no status before
	told      word      // the furthest word
	toldStage word
	toldValue int
	toldAt    time.Time // when progress last went up
	stored    progress  // what NervesHub stored last
	storedAt  time.Time

	// What a heartbeat has proved: everything that was sent before one that was
	// answered has arrived.
	beat, proved proof
	retellTill   time.Time // the last word may have been lost, and is told again until then
}

// progress is a stage and how far it has come.
type progress struct {
	stage word
	value int
}

// A proof is how far NervesHub is known to have heard.
type proof struct {
	told  word
	rowAt time.Time
}

// newUpdate is the state of an update that was offered at now.
func newUpdate(o offer, payload json.RawMessage, now time.Time) *update {
	u := &update{image: o.image(), value: -1}
	u.offeredAgain(payload, now)
	return u
}

// offeredAgain takes over the URL of a repeat. NervesHub sends update only when
// it creates a row, so nothing has been told about this one yet.
func (u *update) offeredAgain(payload json.RawMessage, now time.Time) {
	u.payload, u.row, u.rowAt, u.quietTill = payload, true, now, now.Add(commitRace)
	u.told, u.toldStage, u.toldValue, u.toldAt = none, none, -1, time.Time{}
	u.stored, u.storedAt, u.retellTill = progress{}, time.Time{}, time.Time{}
	u.beat = proof{none, now}
	u.proved = u.beat
}

// open reports whether NervesHub has a row that still waits for its end.
func (u *update) open(now time.Time) bool {
	return u.row && u.told < failed && now.Sub(u.rowAt) < rowLife
}

// running reports whether NervesHub must keep the row over a join: the device
// has acted on the offer, and how that ended has not been told yet. An offer
// nobody acted on is better forgotten: it comes again at once, for free.
func (u *update) running(now time.Time) bool {
	return u != nil && u.word != none && u.open(now)
}

// onOffer reports whether the device may be told to take the update: NervesHub
// still waits for it, and the device has not ended it.
func (u *update) onOffer(now time.Time) bool {
	return u != nil && !u.word.terminal() && u.open(now)
}

// over reports that the device has turned the update down or failed at it.
func (u *update) over() bool { return u.word >= failed }

// goesOn reports whether a repeat of the offer concerns what the device is at,
// or has ended with a word that NervesHub may never have heard.
func (u *update) goesOn(now time.Time) bool {
	return !u.over() || now.Before(u.retellTill)
}

// beats notes what has been sent before a heartbeat; answered, that it arrived.
func (u *update) beats() { u.beat = proof{u.told, u.rowAt} }

func (u *update) answered() { u.proved = u.beat }

// retell is how long after the loss of a link a last word that may have been
// lost with it is still news.
const retell = 5 * time.Minute

// lost takes back what may not have arrived when the channel or its link died. A last word is not simply said
// again: if it did arrive, the row is gone, and a second one would crash the
// channel. A join without the row settles it: only if NervesHub offers the
// update again was the word lost.
func (u *update) lost(now time.Time) {
	u.rowAt, u.beat = u.proved.rowAt, u.proved
	if u.told >= failed && u.proved.told < failed {
		u.told, u.row, u.retellTill = u.proved.told, false, now.Add(retell)
	}
}

// report takes what the device said.
func (u *update) report(r report) *refusal {
	switch {
	case r.word == none:
		return nil
	case u.word.terminal():
		if r.word.terminal() {
			return &refusal{codeAlreadyFinal, "this update has already ended with " + u.word.String()}
		}
		return &refusal{codeAlreadyFinal, "this update has already been reported as " + u.word.String()}
	}
	if r.word.terminal() {
		u.word, u.reason, u.delay = r.word, r.reason, r.delay
		return nil
	}
	u.word = max(u.word, r.word)
	if r.word >= downloading && r.word >= u.stage {
		if r.word > u.stage {
			u.stage, u.value = r.word, -1
		}
		u.value = max(u.value, r.value) // never backwards within a stage
	}
	return nil
}

// restarted says the device has booted: a transfer may begin again from zero.
func (u *update) restarted() {
	if !u.word.terminal() {
		u.stage, u.value, u.toldStage, u.toldValue = none, -1, none, -1
	}
}

// A statement is one event about an update, ready to be pushed.
type statement struct {
	event   string
	payload json.RawMessage
}

// due returns what NervesHub is to be told at now, in order, and takes it as
// told: the caller has a joined channel.
func (u *update) due(now time.Time) []statement {
	if now.Before(u.quietTill) || !u.running(now) {
		return nil
	}
	var out []statement
	for _, w := range []word{received, started} {
		if u.told < w && (u.word >= w && !u.word.terminal() || u.stage != none) {
			u.told, u.rowAt = w, now
			out = append(out, statement{"status_update", encode(map[string]any{"status": w.String()})})
		}
	}
	if u.progressDue(now) {
		out = append(out, u.progress(now))
	}
	if u.word.terminal() && u.told < u.word {
		u.told, u.rowAt = u.word, now
		out = append(out, statement{"status_update", u.last()})
	}
	return out
}

// news reports whether the stage or the value changed since it was told.
func (u *update) news() bool {
	return u.stage != none && u.told < completed && (u.stage != u.toldStage || u.value > u.toldValue)
}

// progressDue: there is news, and the last is old enough or the update is about
// to end.
func (u *update) progressDue(now time.Time) bool {
	return u.news() && (u.word.terminal() || u.stage != u.toldStage || !now.Before(u.toldAt.Add(progressEvery)))
}

// progress is the newest progress. Without a value only the stage is told.
func (u *update) progress(now time.Time) statement {
	if p := (progress{u.stage, u.value}); p.stage != u.stored.stage || p.value != u.stored.value && now.Sub(u.storedAt) >= storeEvery {
		u.stored, u.storedAt, u.rowAt = p, now, now // only a change keeps the row alive
	}
	u.told, u.toldStage, u.toldValue, u.toldAt = max(u.told, u.stage), u.stage, u.value, now
	if u.value < 0 {
		return statement{"status_update", encode(map[string]any{"status": u.stage.String()})}
	}
	return statement{"fwup_progress", encode(map[string]any{"value": u.value, "stage": u.stage.String()})}
}

// last is the payload of the terminal word.
func (u *update) last() json.RawMessage {
	p := map[string]any{"status": u.word.String()}
	if u.reason != "" && u.word != completed {
		p["reason"] = u.reason
	}
	if u.word == rescheduled {
		p["delay_for"] = u.delay.Milliseconds()
	}
	return encode(p)
}

// deadline is when due next has something to say although nothing happens; zero
// means never.
func (u *update) deadline(now time.Time) time.Time {
	switch {
	case !u.running(now):
		return time.Time{}
	case now.Before(u.quietTill):
		return u.quietTill
	case u.news():
		return u.toldAt.Add(progressEvery)
	}
	return time.Time{}
}

// encode is for payloads of our own making, which always encode.
func encode(v any) json.RawMessage {
	b, _ := json.Marshal(v)
	return b
}
