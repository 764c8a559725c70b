package phoenix

import (
	"encoding/json"
	"errors"
	"strconv"
	"time"
)

// ErrSilent means the server did not answer a heartbeat before the next one
// was due. The connection is as good as dead.
var ErrSilent = errors.New("phoenix: heartbeat not answered")

// defaultHeartbeat is the interval of phoenix.js.
const defaultHeartbeat = 30 * time.Second

// A Kind says what a received Message means to the conversation.
type Kind int

const (
	Ignored Kind = iota // answers to heartbeats, and whatever concerns no channel of ours
	Pushed              // the server sent an event
	Replied             // the answer to a Push
	Joined              // the answer to a Join: ok
	Refused             // the answer to a Join: anything else; the channel is not joined
	Crashed             // the channel died on the server; it may be joined again
	Closed              // the server ended the channel
)

var kinds = [...]string{"ignored", "pushed", "replied", "joined", "refused", "crashed", "closed"}

func (k Kind) String() string {
	if k < 0 || int(k) >= len(kinds) {
		return "kind " + strconv.Itoa(int(k))
	}
	return kinds[k]
}

// An Event is a received Message and its Kind. For replies, Status is "ok" or
// "error" and Payload is the bare response: an object as a rule, but also a
// string or an array. Otherwise Payload is the message's own.
type Event struct {
	Kind                      Kind
	Topic, Event, Ref, Status string
	Payload                   json.RawMessage
}

// A Socket is the state of one connection's conversation; see [NewSocket].
// Its methods must not be called concurrently.
type Socket struct {
	interval time.Duration
	ref      uint64 // the last one given out
	channels map[string]*channel
	beat     string    // ref of the heartbeat that awaits its answer, or ""
	due      time.Time // when the next heartbeat is to be sent
}

// A channel is a topic with a join that was neither refused nor ended.
type channel struct {
	join   uint64 // join_ref, and the ref of the join
	joined bool
}

// NewSocket returns the state of a connection that opened at now. Heartbeats
// follow each other at the given interval (0: 30 s), the first one after
// phase (0: one interval), so that many connections do not beat as one.
func NewSocket(now time.Time, heartbeat, phase time.Duration) *Socket {
	if heartbeat <= 0 {
		heartbeat = defaultHeartbeat
	}
	if phase <= 0 {
		phase = heartbeat
	}
	return &Socket{interval: heartbeat, channels: map[string]*channel{}, due: now.Add(phase)}
}

// Join returns the message that joins topic. A topic that is joined already is
// joined anew: the server replaces the old channel, and whatever still arrives
// from that one is ignored.
func (s *Socket) Join(topic string, params json.RawMessage) Message {
	ref := s.nextRef()
	s.channels[topic] = &channel{join: s.ref}
	return Message{JoinRef: ref, Ref: ref, Topic: topic, Event: "phx_join", Payload: params}
}

// Leave returns the message that leaves topic, which counts as left from now
// on; ok is false if there is nothing to leave.
func (s *Socket) Leave(topic string) (m Message, ok bool) {
	ch, ok := s.channels[topic]
	if !ok {
		return Message{}, false
	}
	delete(s.channels, topic)
	return Message{JoinRef: ch.ref(), Ref: s.nextRef(), Topic: topic, Event: "phx_leave"}, true
}

// Push returns a message for a joined topic; ok is false when it is not
// joined, or its join is not answered yet.
func (s *Socket) Push(topic, event string, payload json.RawMessage) (m Message, ok bool) {
	ch, ok := s.channels[topic]
	if !ok || !ch.joined {
		return Message{}, false
	}
	return Message{JoinRef: ch.ref(), Ref: s.nextRef(), Topic: topic, Event: event, Payload: payload}, true
}

// Joined reports whether the server has accepted the last join of topic and
// the channel has not ended since.
func (s *Socket) Joined(topic string) bool {
	ch, ok := s.channels[topic]
	return ok && ch.joined
}

// Receive says what m means and updates the conversation.
func (s *Socket) Receive(m Message) Event {
	e := Event{Topic: m.Topic, Event: m.Event, Ref: m.Ref, Payload: m.Payload}
	if m.Event == "phx_reply" && m.Ref != "" && m.Ref == s.beat {
		s.beat = ""
		return e
	}
	ch, ok := s.channels[m.Topic]
	if !ok || m.JoinRef != "" && m.JoinRef != ch.ref() {
		return e // a channel we left or joined anew; isMember in phoenix.js
	}
	switch m.Event {
	case "phx_reply":
		e.Status, e.Payload = parseReply(m.Payload)
		e.Kind = ch.answered(m, &e)
	case "phx_error", "phx_err":
		e.Kind = Crashed
	case "phx_close":
		e.Kind = Closed
	default:
		// A broadcast has no join_ref, and may overtake the answer to a join.
		e.Kind = Pushed
	}
	switch e.Kind {
	case Joined:
		ch.joined = true
	case Refused, Crashed, Closed:
		delete(s.channels, m.Topic)
	}
	return e
}

// answered says which kind of answer m is, whose status and response are in e.
func (ch *channel) answered(m Message, e *Event) Kind {
	ref, err := strconv.ParseUint(m.Ref, 10, 64)
	switch {
	case err != nil || ref < ch.join:
		return Ignored // to a push of a channel before this one
	case ref == ch.join && ch.joined:
		return Ignored
	case ref == ch.join && e.Status == "ok":
		return Joined
	case ref == ch.join:
		return Refused
	case m.JoinRef == "" && e.Status == "error" && isUnmatched(e.Payload):
		return Crashed // Phoenix.Socket has no channel with our join_ref any more
	}
	return Replied
}

func (ch *channel) ref() string { return strconv.FormatUint(ch.join, 10) }

func (s *Socket) nextRef() string {
	s.ref++
	return strconv.FormatUint(s.ref, 10)
}

// parseReply takes a reply's payload apart. What is no reply has no status.
func parseReply(payload json.RawMessage) (status string, response json.RawMessage) {
	var r struct {
		Status   string          `json:"status"`
		Response json.RawMessage `json:"response"`
	}
	if json.Unmarshal(payload, &r) != nil {
		return "", payload
	}
	return r.Status, r.Response
}

func isUnmatched(response json.RawMessage) bool {
	var r struct {
		Reason string `json:"reason"`
	}
	return json.Unmarshal(response, &r) == nil && r.Reason == "unmatched topic"
}

// Deadline is when [Socket.Tick] next has something to do.
func (s *Socket) Deadline() time.Time { return s.due }

// Tick returns the heartbeat that is due at now, if any, or [ErrSilent] when
// the previous one was not answered in time.
func (s *Socket) Tick(now time.Time) (m Message, due bool, err error) {
	if now.Before(s.due) {
		return Message{}, false, nil
	}
	s.due = now.Add(s.interval)
	if s.beat != "" {
		return Message{}, false, ErrSilent
	}
	s.beat = s.nextRef()
	return Message{Ref: s.beat, Topic: "phoenix", Event: "heartbeat"}, true, nil
}
