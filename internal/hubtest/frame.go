package hubtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// A Frame is one Phoenix message that passed a device's socket.
type Frame struct {
	Time    time.Time       `json:"time"`
	Dir     string          `json:"dir"` // "up" from the device, "down" to it
	JoinRef json.RawMessage `json:"join_ref"`
	Ref     json.RawMessage `json:"ref"`
	Topic   string          `json:"topic"`
	Event   string          `json:"event"`
	Payload json.RawMessage `json:"payload"`
}

// errMalformed is what the V2 serializer raises; it ends the whole connection.
var errMalformed = errors.New("malformed frame")

// parseFrame reads [join_ref, ref, topic, event, payload]. Further elements
// are ignored, refs are kept as they were written.
func parseFrame(data []byte) (Frame, error) {
	var parts []json.RawMessage
	if err := json.Unmarshal(data, &parts); err != nil {
		return Frame{}, fmt.Errorf("%w: %w", errMalformed, err)
	}
	if len(parts) < 5 {
		return Frame{}, fmt.Errorf("%w: %d elements", errMalformed, len(parts))
	}
	f := Frame{Dir: "up", JoinRef: parts[0], Ref: parts[1], Payload: parts[4]}
	if bytes.Equal(parts[2], jsonNull) || bytes.Equal(parts[3], jsonNull) {
		return Frame{}, fmt.Errorf("%w: topic or event is null", errMalformed)
	}
	if err := errors.Join(json.Unmarshal(parts[2], &f.Topic), json.Unmarshal(parts[3], &f.Event)); err != nil {
		return Frame{}, fmt.Errorf("%w: %w", errMalformed, err)
	}
	return f, nil
}

// parseBinaryFrame reads the V2 binary push: 0, four lengths, join_ref, ref,
// topic, event, data (Phoenix.Socket.V2.JSONSerializer).
func parseBinaryFrame(data []byte) (Frame, error) {
	if len(data) < 5 || data[0] != 0 {
		return Frame{}, fmt.Errorf("%w: binary", errMalformed)
	}
	rest := data[5:]
	var parts [4]string
	for i := range parts {
		n := int(data[i+1])
		if n > len(rest) {
			return Frame{}, fmt.Errorf("%w: binary too short", errMalformed)
		}
		parts[i], rest = string(rest[:n]), rest[n:]
	}
	f := Frame{Dir: "up", JoinRef: jsonNull, Topic: parts[2], Event: parts[3]}
	if parts[0] != "" {
		f.JoinRef, _ = json.Marshal(parts[0])
	}
	f.Ref, _ = json.Marshal(parts[1])
	return f, nil
}

var jsonNull = json.RawMessage("null")

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || bytes.Equal(raw, jsonNull) }

// encode writes a frame. Payloads are the hub's own, so it cannot fail.
func (f Frame) encode() []byte {
	or := func(raw json.RawMessage) json.RawMessage {
		if len(raw) == 0 {
			return jsonNull
		}
		return raw
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode([]any{or(f.JoinRef), or(f.Ref), f.Topic, f.Event, f.Payload}); err != nil {
		panic(err) // a payload given to Push that is no JSON
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}

// marshal is json.Marshal without the escaping of <, > and &, which a signed
// URL would not survive in a simple parser.
func marshal(v any) json.RawMessage {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(fmt.Sprintf("hubtest: payload: %v", err))
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}
