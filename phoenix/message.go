package phoenix

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// A Message is one Phoenix frame, [join_ref, ref, topic, event, payload] on
// the wire (Phoenix.Socket.V2.JSONSerializer). An empty JoinRef or Ref is null
// there, and an empty Payload is {}.
type Message struct {
	JoinRef, Ref, Topic, Event string
	Payload                    json.RawMessage
}

// ErrMalformed is wrapped by every error about a frame that is not a Message.
var ErrMalformed = errors.New("phoenix: malformed frame")

// AppendJSON appends m as it goes over the wire. The payload is copied as it
// is; see [ValidPayload]. It does not allocate if b has room enough.
func (m Message) AppendJSON(b []byte) []byte {
	b = append(b, '[')
	b = appendRef(b, m.JoinRef)
	b = append(b, ',')
	b = appendRef(b, m.Ref)
	b = append(b, ',')
	b = appendString(b, m.Topic)
	b = append(b, ',')
	b = appendString(b, m.Event)
	b = append(b, ',')
	if len(m.Payload) == 0 {
		b = append(b, "{}"...)
	} else {
		b = append(b, m.Payload...)
	}
	return append(b, ']')
}

// Parse reads one text frame. Refs may be null, strings or numbers, and a
// number becomes its text; elements beyond the fifth are ignored, as the
// server ignores them. Every error wraps [ErrMalformed].
func Parse(b []byte) (Message, error) {
	if !utf8.Valid(b) { // RFC 6455, section 5.6
		return Message{}, fmt.Errorf("%w: not UTF-8", ErrMalformed)
	}
	var f []json.RawMessage
	if err := json.Unmarshal(b, &f); err != nil {
		return Message{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if len(f) < 5 {
		return Message{}, fmt.Errorf("%w: an array of %d, not of 5", ErrMalformed, len(f))
	}
	m := Message{Payload: f[4]}
	for i, part := range []struct {
		name string
		read func(json.RawMessage) (string, bool)
		to   *string
	}{
		{"join_ref", parseRef, &m.JoinRef},
		{"ref", parseRef, &m.Ref},
		{"topic", parseString, &m.Topic},
		{"event", parseString, &m.Event},
	} {
		var ok bool
		if *part.to, ok = part.read(f[i]); !ok {
			return Message{}, fmt.Errorf("%w: %s is %.32s", ErrMalformed, part.name, f[i])
		}
	}
	return m, nil
}

// ValidPayload reports whether p can be the payload of a push: one JSON
// object in valid UTF-8. A server ends the whole connection over anything else.
func ValidPayload(p []byte) bool {
	for i, c := range p {
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		case '{':
			return utf8.Valid(p[i:]) && json.Valid(p[i:])
		}
		return false
	}
	return false
}

func parseRef(raw json.RawMessage) (string, bool) {
	switch c := raw[0]; {
	case c == 'n':
		return "", true
	case c == '-' || '0' <= c && c <= '9':
		return string(raw), true
	}
	return parseString(raw)
}

func parseString(raw json.RawMessage) (s string, ok bool) {
	switch {
	case raw[0] != '"':
		return "", false
	case bytes.IndexByte(raw, '\\') < 0:
		return string(raw[1 : len(raw)-1]), true
	}
	return s, json.Unmarshal(raw, &s) == nil
}

func appendRef(b []byte, ref string) []byte {
	if ref == "" {
		return append(b, "null"...)
	}
	return appendString(b, ref)
}

// appendString escapes what RFC 8259 demands and nothing else.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ':
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			b = utf8.AppendRune(b, r) // what is not UTF-8 becomes U+FFFD
		}
	}
	return append(b, '"')
}
