package mqtt_test

import (
	"strings"
	"testing"
	"time"

	"ganglion/mqtt"
)

// Whatever a device sends, the broker serves the others and hears nothing in
// another's name. The seeds are every packet a device may send, cut at every
// byte.
func FuzzEmbedded(f *testing.F) {
	topic := mqttString("nh/d/up/log")
	for _, packet := range [][]byte{
		rawConnect{id: "d"}.packet(),
		rawFrame(0x30, append(topic, "text"...)),
		rawFrame(0x33, append(topic, 0, 1, 't')),
		rawFrame(0x34, append(topic, 0, 1, 't')),
		rawFrame(0x32, append(topic, 0, 1, 3, 35, 0, 1, 't')),
		{0x40, 2, 0, 1}, {0x50, 2, 0, 1}, {0x62, 2, 0, 1}, {0x70, 2, 0, 1}, {0x40, 4, 0, 1, 0x87, 0},
		rawFrame(0x82, append(append([]byte{0, 1}, mqttString("nh/d/down/#")...), 1)),
		rawFrame(0x82, append(append([]byte{0, 1, 2, 11, 5}, mqttString("nh/d/down/#")...), 1)),
		rawFrame(0xa2, append([]byte{0, 1}, mqttString("nh/d/down/#")...)),
		rawFrame(0xa2, append([]byte{0, 1, 0}, mqttString("nh/d/down/#")...)),
		{0xc0, 0}, {0xe0, 0}, {0xe0, 2, 4, 0}, {0xe0, 7, 0, 5, 17, 0, 0, 0, 9}, {0xf0, 2, 0x18, 0},
	} {
		for n := 1; n <= len(packet); n++ {
			f.Add(packet[:n])
		}
		for n := 2; n < len(packet); n++ { // the same, but the length says so
			f.Add(rawFrame(packet[0], packet[2:n]))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		onMemory(t, mqtt.EmbeddedConfig{}, func(t *testing.T, b *broker) {
			other := b.device(rawConnect{id: "other"})
			for _, v5 := range []bool{false, true} {
				c := b.connect(rawConnect{id: "d", v5: v5, keepalive: 60})
				b.publish(mqtt.Message{Device: "d", Name: "reboot"})
				_, _ = c.Write(raw)
				_ = c.Close()
			}
			first := b.socket()
			_, _ = first.Write(raw)
			_ = first.Close()
			b.wait(t, "d offline", 1)
			other.alive()
			other.silent(time.Minute)
			b.publish(mqtt.Message{Device: "other", Name: "reboot"})
			other.take()
			for _, line := range b.log() {
				if strings.HasPrefix(line, "other ") && !strings.HasPrefix(line, "other online") {
					t.Errorf("handler heard %q", line)
				}
			}
		})
	})
}
