package mqtt_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// A rawClient says exactly the bytes a test wants to say.
type rawClient struct {
	net.Conn
	t  testing.TB
	r  *bufio.Reader
	v5 bool
}

// A rawConnect is a CONNECT; the zero value of all but id is a clean 3.1.1 one
// with keepalive 0.
type rawConnect struct {
	id, user          string
	keepalive         uint16
	persistent        bool
	will, willPayload string
	willRetain        bool
	v5                bool
	props             []byte // MQTT 5 properties
}

func mqttString(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

func rawFrame(header byte, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{header}, uint64(len(body))), body...)
}

func (o rawConnect) packet() []byte {
	version, flags := byte(4), byte(2)
	if o.v5 {
		version = 5
	}
	if o.persistent {
		flags = 0
	}
	if o.will != "" {
		flags |= 4
	}
	if o.willRetain {
		flags |= 0x20
	}
	if o.user != "" {
		flags |= 0x80
	}
	b := append(mqttString("MQTT"), version, flags)
	b = binary.BigEndian.AppendUint16(b, o.keepalive)
	if o.v5 {
		b = append(append(b, byte(len(o.props))), o.props...)
	}
	b = append(b, mqttString(o.id)...)
	if o.will != "" {
		if o.v5 {
			b = append(b, 0)
		}
		b = append(append(b, mqttString(o.will)...), mqttString(o.willPayload)...)
	}
	if o.user != "" {
		b = append(b, mqttString(o.user)...)
	}
	return rawFrame(0x10, b)
}

func newRawClient(t testing.TB, c net.Conn) *rawClient {
	return &rawClient{Conn: c, t: t, r: bufio.NewReader(c)}
}

func (c *rawClient) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// hello sends CONNECT and returns the body of CONNACK.
func (c *rawClient) hello(o rawConnect) []byte {
	c.t.Helper()
	c.v5 = o.v5
	c.send(o.packet())
	return c.expect(0x20)
}

// packet reads the next packet within d.
func (c *rawClient) packet(d time.Duration) (header byte, body []byte, err error) {
	_ = c.SetReadDeadline(time.Now().Add(d))
	if header, err = c.r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(c.r)
	if err != nil {
		return 0, nil, err
	}
	body = make([]byte, n)
	_, err = io.ReadFull(c.r, body)
	return header, body, err
}

// expect reads a packet of the given type (high nibble of its header).
func (c *rawClient) expect(header byte) []byte {
	c.t.Helper()
	h, body, err := c.packet(5 * time.Second)
	if err != nil {
		c.t.Fatalf("want packet %x: %v", header, err)
	}
	if h&0xf0 != header&0xf0 {
		c.t.Fatalf("want packet %x, got %x %x", header, h, body)
	}
	return body
}

// silent fails if anything arrives within d.
func (c *rawClient) silent(d time.Duration) {
	c.t.Helper()
	if h, body, err := c.packet(d); !errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("want nothing, got %x %x %v", h, body, err)
	}
}

// gone fails unless the broker ends the connection within d, whatever it sends
// before.
func (c *rawClient) gone(d time.Duration) {
	c.t.Helper()
	end := time.Now().Add(d)
	for {
		if _, _, err := c.packet(time.Until(end)); errors.Is(err, os.ErrDeadlineExceeded) {
			c.t.Fatalf("connection still open after %v", d)
		} else if err != nil {
			return
		}
	}
}

// alive fails unless the broker answers a PINGREQ.
func (c *rawClient) alive() {
	c.t.Helper()
	c.send([]byte{0xc0, 0})
	c.expect(0xd0)
}

// subscribe returns the reason code of the SUBACK.
func (c *rawClient) subscribe(filter string, options byte) byte {
	c.t.Helper()
	b := []byte{0, 1}
	if c.v5 {
		b = append(b, 0)
	}
	c.send(rawFrame(0x82, append(append(b, mqttString(filter)...), options)))
	body := c.expect(0x90)
	return body[len(body)-1]
}

func (c *rawClient) publish(topic, payload string, qos byte, id uint16, retain bool) {
	c.t.Helper()
	h := 0x30 | qos<<1
	if retain {
		h |= 1
	}
	b := mqttString(topic)
	if qos > 0 {
		b = binary.BigEndian.AppendUint16(b, id)
	}
	if c.v5 {
		b = append(b, 0)
	}
	c.send(rawFrame(h, append(b, payload...)))
}

func (c *rawClient) puback(id uint16) {
	c.t.Helper()
	c.send([]byte{0x40, 2, byte(id >> 8), byte(id)})
}

// A rawPublish is a PUBLISH the broker sent.
type rawPublish struct {
	topic, payload string
	qos            byte
	retain         bool
	id             uint16
	props          []byte
}

func (p rawPublish) String() string {
	return fmt.Sprintf("%s=%s qos %d retain %v", p.topic, p.payload, p.qos, p.retain)
}

// receive reads a PUBLISH. It does not acknowledge it.
func (c *rawClient) receive() rawPublish {
	c.t.Helper()
	h, b, err := c.packet(5 * time.Second)
	if err != nil || h&0xf0 != 0x30 {
		c.t.Fatalf("want a PUBLISH, got %x %x %v", h, b, err)
	}
	p := rawPublish{qos: h >> 1 & 3, retain: h&1 != 0}
	n := int(binary.BigEndian.Uint16(b))
	p.topic, b = string(b[2:2+n]), b[2+n:]
	if p.qos > 0 {
		p.id, b = binary.BigEndian.Uint16(b), b[2:]
	}
	if c.v5 {
		n, w := binary.Uvarint(b)
		p.props, b = bytes.Clone(b[w:w+int(n)]), b[w+int(n):]
	}
	p.payload = string(b)
	return p
}

// take receives a PUBLISH and acknowledges it.
func (c *rawClient) take() rawPublish {
	c.t.Helper()
	p := c.receive()
	if p.qos == 1 {
		c.puback(p.id)
	}
	return p
}
