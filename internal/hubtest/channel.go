package hubtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"
)

// A channel is one joined topic of a socket. Hub.mu guards it.
type channel struct {
	kind    kind
	key     string // internal topic, as the server names it: device:<database id>
	topic   string // on the wire
	joinRef json.RawMessage
	dead    bool // crashed; phx_error is about to be sent

	attach   []string        // extensions this channel may attach
	attached map[string]bool // those it did
	bucket   bucket          // of the logging extension
}

// A kind is what one sort of channel does. join returns the response to the
// join; joined runs after the reply; receive returns why the channel crashed.
type kind interface {
	join(s *socket, ch *channel, now time.Time, payload json.RawMessage) (response any, err error)
	joined(s *socket, ch *channel, now time.Time)
	receive(s *socket, ch *channel, now time.Time, f Frame) crash
}

// route finds the channel a topic means on a socket.
func (s *socket) route(topic string) (k kind, key, wire string, ok bool) {
	if s.dev == nil {
		id, ok := strings.CutPrefix(topic, userConsole)
		d := s.hub.devices[id]
		if !ok || d == nil {
			return nil, "", "", false
		}
		return userChannel{}, topic, topic, true
	}
	id := strconv.Itoa(s.dev.dbID)
	switch {
	case topic == "device":
		return deviceChannel{}, "device:" + id, topic, true
	case strings.HasPrefix(topic, "device:"):
		// The internal name is taken literally, even another device's.
		return deviceChannel{}, topic, "device", true
	case topic == "extensions":
		return extensionsChannel{}, "extensions:" + id, topic, true
	case topic == "console":
		return consoleChannel{}, "console:" + id, topic, true
	}
	return nil, "", "", false
}

// afterJoin is when the pushes that follow a join's reply are made: 1 to 3 ms
// on the real server.
const afterJoin = time.Millisecond

// crashTime passes between a crash and its phx_error; what arrives meanwhile
// is lost. 4 to 20 ms on the real server.
const crashTime = 5 * time.Millisecond

var emptyObject = json.RawMessage("{}")

// dispatch handles one frame as Phoenix.Socket does.
func (s *socket) dispatch(now time.Time, f Frame) {
	if f.Topic == "phoenix" && f.Event == "heartbeat" {
		if s.dev != nil {
			s.dev.heartbeats++
		}
		s.reply(nil, f.Ref, f.Topic, "ok", emptyObject)
		return
	}
	kind, key, wire, ok := s.route(f.Topic)
	if !ok {
		s.unmatched(f)
		return
	}
	ch := s.channels[key]
	switch {
	case f.Event == "phx_join":
		s.join(now, &channel{kind: kind, key: key, topic: wire, joinRef: f.JoinRef}, f)
	case ch == nil && f.Event == "phx_leave":
		s.reply(f.JoinRef, f.Ref, f.Topic, "ok", emptyObject)
	case ch == nil:
		s.unmatched(f)
	case ch.dead:
		// in the mailbox of a process that is gone
	case !isNull(f.JoinRef) && !bytes.Equal(f.JoinRef, ch.joinRef):
		// meant for an earlier channel
	case f.Event == "phx_leave":
		s.reply(ch.joinRef, f.Ref, ch.topic, "ok", emptyObject)
		s.end(ch, "phx_close", emptyObject)
	default:
		why := crash("binary payload")
		if f.Payload != nil {
			why = ch.kind.receive(s, ch, now, f)
		}
		if why != "" {
			s.crash(now, ch, why)
		}
	}
}

func (s *socket) unmatched(f Frame) {
	s.reply(nil, f.Ref, f.Topic, "error", map[string]string{"reason": "unmatched topic"})
}

// join replaces a channel of the same topic. The new reply comes before the
// old phx_close, as it always did in the recordings.
func (s *socket) join(now time.Time, ch *channel, f Frame) {
	h := s.hub
	old := s.channels[ch.key]
	if old != nil && old.dead {
		s.buried(old)
		old = nil
	}
	if old != nil {
		h.unsubscribe(s, old.key)
		delete(s.channels, old.key)
	}
	response, err := ch.kind.join(s, ch, now, f.Payload)
	switch {
	case errors.Is(err, errCouldNotEnter):
		s.reply(ch.joinRef, f.Ref, ch.topic, "error", map[string]string{"error": errCouldNotEnter.Error()})
	case err != nil:
		s.reply(ch.joinRef, f.Ref, ch.topic, "error", map[string]string{"reason": errJoinCrashed.Error()})
	default:
		s.channels[ch.key] = ch
		h.subscribe(s, ch)
		s.reply(ch.joinRef, f.Ref, ch.topic, "ok", response)
	}
	if old != nil {
		s.push(old, old.joinRef, "phx_close", emptyObject)
	}
	if s.dev != nil {
		s.dev.joinDone(ch, err)
		if err != nil {
			h.say(s.dev.id, ch.topic+" join refused: "+err.Error())
		} else {
			h.say(s.dev.id, ch.topic+" joined")
		}
	}
	if err == nil {
		h.later(now.Add(afterJoin), func(now time.Time) {
			if s.channels[ch.key] == ch && !ch.dead {
				ch.kind.joined(s, ch, now)
			}
		})
	}
}

// crash kills a channel; the socket lives on, and so do its other channels.
func (s *socket) crash(now time.Time, ch *channel, why crash) {
	ch.dead = true
	s.hub.unsubscribe(s, ch.key)
	if s.dev != nil {
		s.dev.crashed(now, ch.topic, string(why))
		s.hub.say(s.dev.id, ch.topic+" channel crashed: "+string(why))
	}
	s.hub.later(now.Add(crashTime), func(time.Time) {
		if s.channels[ch.key] == ch {
			s.buried(ch)
		}
	})
}

func (s *socket) buried(ch *channel) {
	s.end(ch, "phx_error", json.RawMessage(`{"reason":"channel_crash"}`))
}

// end tells the client that a channel is over.
func (s *socket) end(ch *channel, event string, payload json.RawMessage) {
	s.hub.unsubscribe(s, ch.key)
	delete(s.channels, ch.key)
	s.push(ch, ch.joinRef, event, payload)
}

// push sends an event of the channel itself, with its join_ref.
func (s *socket) push(ch *channel, ref json.RawMessage, event string, payload json.RawMessage) {
	s.send(Frame{JoinRef: ch.joinRef, Ref: ref, Topic: ch.topic, Event: event, Payload: payload})
}

func (h *Hub) subscribe(s *socket, ch *channel) {
	if h.subs[ch.key] == nil {
		h.subs[ch.key] = map[*socket]*channel{}
	}
	h.subs[ch.key][s] = ch
}

func (h *Hub) unsubscribe(s *socket, key string) {
	delete(h.subs[key], s)
	if len(h.subs[key]) == 0 {
		delete(h.subs, key)
	}
}

// broadcast writes an event to everyone who joined the topic. Broadcasts have
// neither join_ref nor ref. It reports whether anyone was there.
func (h *Hub) broadcast(key, event string, payload any) bool {
	raw := marshal(payload)
	for s, ch := range h.subs[key] {
		s.send(Frame{Topic: ch.topic, Event: event, Payload: raw})
	}
	return len(h.subs[key]) > 0
}

// pushAll writes an event to everyone who joined the topic, as each one's
// channel process pushes it: with its join_ref.
func (h *Hub) pushAll(key, event string, payload any) bool {
	raw := marshal(payload)
	for s, ch := range h.subs[key] {
		s.push(ch, nil, event, raw)
	}
	return len(h.subs[key]) > 0
}
