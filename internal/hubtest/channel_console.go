package hubtest

import (
	"encoding/json"
	"time"
)

// userConsole begins the topics of the operator's side of a console.
const userConsole = "user:console:identifier-"

// scrollbackLines is how much of a console a newly attached operator sees.
const scrollbackLines = 1024

// consoleChannel is the device's side of the console. Unlike the device
// channel it has no clause for events it does not know.
type consoleChannel struct{}

func (consoleChannel) join(s *socket, _ *channel, _ time.Time, payload json.RawMessage) (any, error) {
	p, ok := decode(payload).(map[string]any)
	if !ok {
		return nil, errJoinCrashed
	}
	s.dev.consoleVersion = str(p, "console_version")
	return emptyObject, nil
}

func (consoleChannel) joined(*socket, *channel, time.Time) {}

func (consoleChannel) receive(s *socket, _ *channel, _ time.Time, f Frame) crash {
	h, topic := s.hub, userConsole+s.dev.id
	switch f.Event {
	case "up":
		p, _ := decode(f.Payload).(map[string]any)
		data, ok := p["data"]
		if !ok {
			return "up without data"
		}
		if text, ok := data.(string); ok {
			lines := append(h.scrollback[topic], text)
			h.scrollback[topic] = lines[max(0, len(lines)-scrollbackLines):]
		}
		h.pushAll(topic, "up", map[string]any{"data": data})
	case "file-data/start", "file-data", "file-data/stop":
		h.pushAll(topic, f.Event, f.Payload)
	default:
		return crash("unknown console event " + f.Event)
	}
	return ""
}

// userChannel is the operator's side of a console.
type userChannel struct{}

func (userChannel) join(*socket, *channel, time.Time, json.RawMessage) (any, error) {
	return emptyObject, nil
}

func (userChannel) joined(s *socket, ch *channel, _ time.Time) {
	h := s.hub
	d := h.devices[ch.topic[len(userConsole):]]
	s.push(ch, nil, "metadata", marshal(map[string]any{"version": null(d.consoleVersion)}))
	text := ""
	for _, line := range h.scrollback[ch.topic] {
		text += line
	}
	s.push(ch, nil, "up", marshal(map[string]string{"data": text}))
}

// receive forwards whatever the operator pushes.
func (userChannel) receive(s *socket, ch *channel, _ time.Time, f Frame) crash {
	payload, ok := decode(f.Payload).(map[string]any)
	if !ok {
		return "payload is not an object"
	}
	switch f.Event {
	case "file-data/start", "file-data/stop":
		payload["uploaded_by"] = operator
	}
	d := s.hub.devices[ch.topic[len(userConsole):]]
	s.hub.pushAll(d.consoleTopic(), f.Event, payload)
	return ""
}

// operator is the database id of the one user there is.
const operator = 1
