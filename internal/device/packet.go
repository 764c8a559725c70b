package device

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"
)

// The control packets a clean-session client with QoS 0 and 1 needs, by their
// number (MQTT 3.1.1 §2.2.1).
const (
	typeConnect    = 1
	typeConnack    = 2
	typePublish    = 3
	typePuback     = 4
	typeSubscribe  = 8
	typeSuback     = 9
	typePingreq    = 12
	typePingresp   = 13
	typeDisconnect = 14
)

// errMalformed is the cause of every error about what a packet says, as
// opposed to one about reading it.
var errMalformed = errors.New("malformed packet")

// A packet is one control packet from the broker. Which fields count depends
// on its kind.
type packet struct {
	kind    byte
	topic   string // PUBLISH
	payload []byte // PUBLISH
	qos     byte   // PUBLISH
	retain  bool   // PUBLISH
	id      uint16 // PUBLISH of QoS 1, PUBACK, SUBACK
	codes   []byte // CONNACK: one return code; SUBACK: one per filter
	size    int    // bytes on the wire
	cut     bool   // PUBLISH longer than the limit: topic and id are right, payload is empty
}

// readPacket reads one control packet and never holds more than limit bytes of
// it: the rest of a longer PUBLISH is read and forgotten, any other longer
// packet is malformed. Errors are those of r, or wrap errMalformed.
func readPacket(r *bufio.Reader, limit int) (packet, error) {
	first, err := r.ReadByte()
	if err != nil {
		return packet{}, err
	}
	length, digits, err := readLength(r)
	if err != nil {
		return packet{}, err
	}
	p := packet{kind: first >> 4, size: 1 + digits + length}
	p.cut = p.size > limit
	if p.cut && p.kind != typePublish {
		return packet{}, fmt.Errorf("%w: type %d of %d bytes", errMalformed, p.kind, p.size)
	}
	body := make([]byte, min(length, limit))
	if _, err := io.ReadFull(r, body); err != nil {
		return packet{}, unexpected(err)
	}
	if _, err := r.Discard(length - len(body)); err != nil {
		return packet{}, unexpected(err)
	}
	if err := p.parse(first&0x0f, body); err != nil {
		return packet{}, err
	}
	return p, nil
}

// readLength reads the remaining length: base 128, least significant digit
// first, at most four digits (MQTT 3.1.1 §2.2.3).
func readLength(r *bufio.Reader) (n, digits int, err error) {
	for digits = 1; digits <= 4; digits++ {
		b, err := r.ReadByte()
		if err != nil {
			return 0, 0, unexpected(err)
		}
		n |= int(b&0x7f) << (7 * (digits - 1))
		if b&0x80 == 0 {
			return n, digits, nil
		}
	}
	return 0, 0, fmt.Errorf("%w: remaining length of more than four bytes", errMalformed)
}

// unexpected tells the end of the stream inside a packet from one between two.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (p *packet) parse(flags byte, body []byte) error {
	if p.kind == typePublish {
		return p.parsePublish(flags, body)
	}
	if flags != 0 { // [MQTT-2.2.2-2]
		return fmt.Errorf("%w: type %d with flags %d", errMalformed, p.kind, flags)
	}
	want := map[byte]int{typeConnack: 2, typePuback: 2, typePingresp: 0}
	n, fixed := want[p.kind]
	switch {
	case p.kind == typeSuback && len(body) >= 3:
	case !fixed:
		return fmt.Errorf("%w: type %d from a broker", errMalformed, p.kind)
	case len(body) != n:
		return fmt.Errorf("%w: type %d with %d bytes", errMalformed, p.kind, len(body))
	}
	switch p.kind {
	case typeConnack:
		p.codes = body[1:]
	case typePuback:
		p.id = binary.BigEndian.Uint16(body)
	case typeSuback:
		p.id, p.codes = binary.BigEndian.Uint16(body), body[2:]
	}
	return nil
}

func (p *packet) parsePublish(flags byte, body []byte) error {
	p.qos, p.retain = flags>>1&3, flags&1 != 0
	if p.qos > 1 { // more was never asked for [MQTT-3.8.4-6]
		return fmt.Errorf("%w: PUBLISH of QoS %d", errMalformed, p.qos)
	}
	if len(body) < 2 {
		return fmt.Errorf("%w: PUBLISH without topic", errMalformed)
	}
	n := int(binary.BigEndian.Uint16(body))
	body = body[2:]
	if n == 0 || n > len(body) {
		return fmt.Errorf("%w: topic of %d bytes in a PUBLISH of %d", errMalformed, n, p.size)
	}
	p.topic, body = string(body[:n]), body[n:]
	if !utf8.ValidString(p.topic) || strings.ContainsAny(p.topic, "\x00+#") { // [MQTT-1.5.3-1], [MQTT-1.5.3-2], [MQTT-3.3.2-2]
		return fmt.Errorf("%w: topic %q", errMalformed, p.topic)
	}
	if p.qos == 1 {
		if len(body) < 2 {
			return fmt.Errorf("%w: PUBLISH of QoS 1 without an identifier", errMalformed)
		}
		if p.id = binary.BigEndian.Uint16(body); p.id == 0 { // [MQTT-2.3.1-1]
			return fmt.Errorf("%w: packet identifier 0", errMalformed)
		}
		body = body[2:]
	}
	if !p.cut {
		p.payload = body
	}
	return nil
}

// A login is what CONNECT says. A will exists if willTopic is not empty; it is
// retained and of QoS 1.
type login struct {
	id                     string
	username, password     string
	willTopic, willPayload string
	keepalive              uint16 // s
}

func connectPacket(l login) []byte {
	flags := byte(0x02) // clean session: the gateway keeps none
	if l.willTopic != "" {
		flags |= 0x04 | 1<<3 | 0x20
	}
	if l.username != "" {
		flags |= 0x80
		if l.password != "" {
			flags |= 0x40
		}
	}
	body := appendString(nil, "MQTT")
	body = append(body, 4, flags) // protocol level 4 is 3.1.1
	body = binary.BigEndian.AppendUint16(body, l.keepalive)
	body = appendString(body, l.id)
	if l.willTopic != "" {
		body = appendString(body, l.willTopic)
		body = appendString(body, l.willPayload)
	}
	if l.username != "" {
		body = appendString(body, l.username)
		if l.password != "" {
			body = appendString(body, l.password)
		}
	}
	return frame(typeConnect<<4, body)
}

// subscribePacket asks for the filters at QoS 1.
func subscribePacket(id uint16, filters ...string) []byte {
	body := binary.BigEndian.AppendUint16(nil, id)
	for _, f := range filters {
		body = append(appendString(body, f), 1)
	}
	return frame(typeSubscribe<<4|2, body) // [MQTT-3.8.1-1]
}

// publishPacket has QoS 1 if id is not 0, else QoS 0.
func publishPacket(topic string, id uint16, retain bool, payload []byte) []byte {
	first := byte(typePublish << 4)
	if retain {
		first |= 1
	}
	body := appendString(nil, topic)
	if id != 0 {
		first |= 1 << 1
		body = binary.BigEndian.AppendUint16(body, id)
	}
	return frame(first, append(body, payload...))
}

func pubackPacket(id uint16) []byte {
	return []byte{typePuback << 4, 2, byte(id >> 8), byte(id)}
}

func pingreqPacket() []byte    { return []byte{typePingreq << 4, 0} }
func disconnectPacket() []byte { return []byte{typeDisconnect << 4, 0} }

// appendString appends s as a length-prefixed string (MQTT 3.1.1 §1.5.3). The
// strings of a Config are checked to be shorter than 64 KiB.
func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(min(len(s), math.MaxUint16))), s...)
}

func frame(first byte, body []byte) []byte {
	out := append(make([]byte, 0, 5+len(body)), first)
	n := len(body)
	for n > 0x7f {
		out = append(out, byte(n)|0x80)
		n >>= 7
	}
	return append(append(out, byte(n)), body...)
}
