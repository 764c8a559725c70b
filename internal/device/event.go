package device

import (
	"fmt"
	"time"
)

// An Event is something that happened to a device.
type Event struct {
	Device string
	At     time.Time
	What   What
}

func (e Event) String() string { return e.Device + "  " + e.What.String() }

// What is one of the types below. Its text is one readable line.
type What interface{ fmt.Stringer }

// Connected: the broker accepted the connection.
type Connected struct{ Broker string }

// Disconnected: the connection ended, or could not be made. Retry is zero if
// the device ended it itself and does not come back by a timer.
type Disconnected struct {
	Err   error
	Retry time.Duration
}

// Subscribed: the broker granted both filters.
type Subscribed struct{}

// HelloSent: the device said what it runs.
type HelloSent struct{ Firmware Firmware }

// HelloAcknowledged: the gateway has the hello.
type HelloAcknowledged struct{}

// Gateway is what <prefix>/gateway says.
type Gateway struct {
	Online bool
	Boot   uint64
}

// Link says whether the device is joined at NervesHub, as far as the gateway
// says so.
type Link struct{ Up bool }

// CommandReceived: reboot, identify or another name below down/. Repeat means
// that Ref was seen before and nothing is done.
type CommandReceived struct {
	Name   string
	Ref    uint64 // 0: none given
	Repeat bool
}

// Identified: the device made itself noticeable.
type Identified struct{}

// UpdateReceived: an offer that the device takes.
type UpdateReceived struct {
	Version, UUID string
	Size          int64 // bytes; 0: not said
	Resumed       int64 // bytes of it already in flash
}

// UpdateIgnored: an offer that the device does not take, or no longer.
type UpdateIgnored struct{ Reason string }

// Progress: how much of the image is in flash.
type Progress struct{ Percent int }

// FetchFailed: an attempt broke off at Offset and is repeated from there.
type FetchFailed struct {
	Offset int64
	Err    error
}

// Fetched: the image is complete and what the offer said.
type Fetched struct {
	Bytes  int64
	SHA256 string
}

// UpdateFailed: the device gave up and says so with Status.
type UpdateFailed struct {
	Status string // failed or rescheduled
	Err    error
}

// Rebooting: the device goes down. Cause is update, command or fault.
type Rebooting struct{ Cause string }

// Running: the device is up, before it connects.
type Running struct {
	Firmware Firmware
	Reverted bool
}

// Validated: the new firmware reached the gateway and confirmed itself.
type Validated struct{ Version string }

// Error is what the gateway said on down/error.
type Error struct{ On, Code, Reason string }

// TooLarge: a packet longer than the device's buffer was dropped.
type TooLarge struct {
	Topic string
	Bytes int
}

// Misbehaved: a fault struck.
type Misbehaved struct {
	Fault  Fault
	Detail string
}

func (e Connected) String() string { return "connected to " + e.Broker }
func (e Disconnected) String() string {
	switch {
	case e.Err == nil:
		return "disconnected"
	case e.Retry == 0:
		return fmt.Sprintf("disconnected: %v", e.Err)
	}
	return fmt.Sprintf("disconnected: %v; again in %v", e.Err, e.Retry.Round(10*time.Millisecond))
}
func (Subscribed) String() string        { return "subscribed" }
func (e HelloSent) String() string       { return "hello: runs " + e.Firmware.String() }
func (HelloAcknowledged) String() string { return "hello acknowledged" }
func (e Gateway) String() string {
	if e.Online {
		return fmt.Sprintf("gateway is online (boot %d)", e.Boot)
	}
	return "gateway is offline"
}
func (e Link) String() string {
	if e.Up {
		return "link to NervesHub is up"
	}
	return "link to NervesHub is down"
}
func (e CommandReceived) String() string {
	s := "command " + e.Name
	if e.Ref != 0 {
		s += fmt.Sprintf(" (ref %d)", e.Ref)
	}
	if e.Repeat {
		s += ", done before"
	}
	return s
}
func (Identified) String() string { return "identify: blinking" }
func (e UpdateReceived) String() string {
	s := fmt.Sprintf("update to %s, %d bytes", e.Version, e.Size)
	if e.Resumed > 0 {
		s += fmt.Sprintf(", going on at %d", e.Resumed)
	}
	return s
}
func (e UpdateIgnored) String() string { return "update ignored: " + e.Reason }
func (e Progress) String() string      { return fmt.Sprintf("progress %d %%", e.Percent) }
func (e FetchFailed) String() string {
	return fmt.Sprintf("download broke off at %d: %v", e.Offset, e.Err)
}
func (e Fetched) String() string {
	return fmt.Sprintf("fetched %d bytes, sha256 %.8s…", e.Bytes, e.SHA256)
}
func (e UpdateFailed) String() string { return fmt.Sprintf("update %s: %v", e.Status, e.Err) }
func (e Rebooting) String() string    { return "rebooting (" + e.Cause + ")" }
func (e Running) String() string {
	if e.Reverted {
		return "running " + e.Firmware.String() + ", reverted"
	}
	return "running " + e.Firmware.String()
}
func (e Validated) String() string { return "validated " + e.Version }
func (e Error) String() string {
	return fmt.Sprintf("gateway refused %s: %s (%s)", e.On, e.Code, e.Reason)
}
func (e TooLarge) String() string {
	return fmt.Sprintf("dropped a packet of %d bytes on %s: too large", e.Bytes, e.Topic)
}
func (e Misbehaved) String() string { return fmt.Sprintf("fault %s: %s", e.Fault, e.Detail) }
