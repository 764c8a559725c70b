package gateway

import (
	"context"

	"ganglion/mqtt"
)

// A Tap is told of every MQTT message the gateway takes or publishes. It must
// not block. device is empty for what the gateway says about itself.
type Tap func(up bool, device, name string, payload []byte)

// A tapped Bus is one with a Tap on it.
type tapped struct {
	mqtt.Bus
	tap Tap
}

// Publish implements [mqtt.Bus].
func (t tapped) Publish(m mqtt.Message) error {
	t.tap(false, m.Device, m.Name, m.Payload)
	return t.Bus.Publish(m)
}

// Run implements [mqtt.Bus].
func (t tapped) Run(ctx context.Context, h mqtt.Handler) error {
	return t.Bus.Run(ctx, tappedHandler{h, t.tap})
}

type tappedHandler struct {
	mqtt.Handler
	tap Tap
}

// Received implements [mqtt.Handler].
func (t tappedHandler) Received(device, name string, payload []byte) error {
	t.tap(true, device, name, payload)
	return t.Handler.Received(device, name, payload)
}
