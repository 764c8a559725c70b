// Package mqtt is the gateway's side of MQTT: a Bus to the devices, either an
// embedded broker or a client of a broker the site already runs. It knows
// topics, quality of service and presence; it knows nothing of Phoenix, of
// NervesHub or of what the messages mean.
package mqtt

import (
	"context"
	"errors"
	"time"
)

// ErrRetained is why a device's publish was refused: nothing below up/ may be
// retained, except up/online on a foreign broker.
var ErrRetained = errors.New("mqtt: retained publish")

// Why Publish dropped a message.
var (
	ErrBusy      = errors.New("mqtt: publishes faster than it is heard") // what a Handler has against one device, not all
	ErrQueueFull = errors.New("mqtt: queue full")
	ErrAbsent    = errors.New("mqtt: device is not connected")       // a command; state is kept for it
	ErrOffline   = errors.New("mqtt: not connected to the broker")   // or Run has ended
	ErrExpired   = errors.New("mqtt: message expired")               // Message.Expires has passed
	ErrTooLarge  = errors.New("mqtt: message too large")             // also why a publish is Refused
	ErrTopic     = errors.New("mqtt: device or name makes no topic") // an identifier or a name nobody can have
)

// A Message is something the gateway publishes: to one device, or, with an
// empty Device, about itself.
type Message struct {
	Device  string    // topic <prefix>/<Device>/down/<Name>; empty: <prefix>/<Name>
	Name    string    // one or more topic levels, as "reboot" or "console/size"
	Payload []byte    // nil with Retain clears the retained message
	Retain  bool      // state is retained, commands never are
	Expires time.Time // not delivered after this moment; zero: no limit
}

// A Client is what a Bus knows about a device's connection.
type Client struct {
	Version   byte // MQTT protocol level: 4 is 3.1.1, 5 is 5; 0 when a foreign broker hides it
	MaxPacket int  // largest packet the device accepts, bytes (MQTT 5 §3.1.2.11.4); 0: not said
}

// A Handler hears from devices. A Bus calls it from its own goroutines, in
// order for one device. No method may block or wait for NervesHub.
type Handler interface {
	// Online says the device has connected, or connected again.
	Online(device string, c Client)
	// Offline says the device's connection ended. A takeover by a new
	// connection of the same device is Online again and never Offline.
	Offline(device string)
	// Received hands over what the device published below up/. A nil error
	// acknowledges it; any other error leaves it unacknowledged and ends the
	// connection, so that it is sent again. On a foreign broker that connection
	// is everybody's: there an error wrapping [ErrBusy], which concerns one
	// device, is acknowledged nevertheless, and Refused. payload is the
	// handler's to keep.
	Received(device, name string, payload []byte) error
	// Refused says that the Bus itself turned a publish away, and why, as
	// [ErrRetained], [ErrTooLarge] or [ErrBusy].
	Refused(device, name string, why error)
}

// A Bus carries messages between the gateway and its devices.
type Bus interface {
	// Run serves h until ctx ends, then disconnects the devices. It returns
	// within 5 s of ctx's end, nil if that was the reason.
	Run(ctx context.Context, h Handler) error
	// Publish hands m over. It never waits for a device: each has a bounded
	// queue of its own, and an error says that m was dropped.
	Publish(m Message) error
	// Health says how the Bus is doing now.
	Health() Health
}

// Health is a Bus at one moment.
type Health struct {
	Err     error             // why no device can be served, or nil
	Devices int               // connected devices
	Dropped map[string]uint64 // messages lost since the start, by reason
}
