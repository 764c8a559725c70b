package mqtt_test

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"ganglion/internal/memnet"
	"ganglion/mqtt"
)

// scripted answers the nth connection's CONNECT with sessions[n], grants its
// SUBSCRIBE and leaves the rest to script. It answers no PINGREQ: a connection
// lasts 40 s.
func scripted(t *testing.T, sessions []bool, script func(n int, conn net.Conn)) *memnet.Listener {
	l := memnet.Listen()
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				if _, err := packets.ReadPacket(conn); err != nil {
					return
				}
				answer := []byte{0x20, 2, 0, 0}
				if sessions[min(n, len(sessions)-1)] {
					answer[2] = 1
				}
				conn.Write(answer)
				grant(conn)
				wg.Go(func() { script(n, conn) })
				io.Copy(io.Discard, conn)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l
}

// tell publishes to the other end of conn.
func tell(conn net.Conn, topic, payload string, qos byte, retained bool) {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Qos, p.Payload, p.Retain = topic, qos, []byte(payload), retained
	if qos > 0 {
		p.MessageID = 9
	}
	p.Write(conn)
}

// A broker that restarts without persistence forgets who was there, and with
// the connections the wills: who does not come back is gone.
func TestExternalSessionLost(t *testing.T) {
	all := []string{"back", "gone", "says", "will"}
	for _, tt := range []struct {
		name     string
		sessions []bool // by connection
		offline  []string
	}{
		{"session kept", []bool{false, true}, []string{"will"}},
		{"session lost", []bool{false, false}, []string{"gone", "will"}},
		{"session lost, and the connection again", []bool{false, false, true}, []string{"gone", "will"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := scripted(t, tt.sessions, func(n int, conn net.Conn) {
					if n == 0 {
						for _, d := range all {
							tell(conn, "nh/"+d+"/up/online", "1", 0, true)
						}
						return
					}
					tell(conn, "nh/back/up/online", "1", 0, true)
					tell(conn, "nh/will/up/online", "0", 0, true)
					if n == 1 && len(tt.sessions) > 2 {
						conn.Close() // before the rest has had the time to come
						return
					}
					tell(conn, "nh/says/up/status", "here", 0, false)
				})
				r := new(recorder)
				g := run(t, external(t, mqtt.ExternalConfig{Topics: mqtt.Topics{Prefix: "nh"}, URL: "mqtt://b", ClientID: "g", Dial: l.Dial}), r)
				within(t, 10*time.Second, "all online", func() bool { return g.Health().Devices == len(all) })
				time.Sleep(20 * time.Second) // the first session is new too, and nobody is in doubt
				synctest.Wait()
				if n := g.Health().Devices; n != len(all) {
					t.Errorf("%d devices after a while, want %d", n, len(all))
				}
				l.Drop()
				time.Sleep(25 * time.Second)
				synctest.Wait()
				var offline []string
				for _, e := range r.all() {
					var device string
					if n, _ := fmt.Sscanf(e, "offline %s", &device); n == 1 {
						offline = append(offline, device)
					}
				}
				slices.Sort(offline)
				if !slices.Equal(offline, tt.offline) || g.Health().Devices != len(all)-len(offline) {
					t.Errorf("offline: %q, want %q; %d left", offline, tt.offline, g.Health().Devices)
				}
				g.stop(t)
				l.Close()
			})
		})
	}
}

// A device that is doubted and given up comes back with its next word.
func TestExternalDoubtedReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := scripted(t, []bool{false}, func(n int, conn net.Conn) {
			if n > 0 {
				time.Sleep(15 * time.Second)
			}
			tell(conn, "nh/d1/up/status", fmt.Sprint(n), 0, false)
		})
		r := new(recorder)
		g := run(t, external(t, mqtt.ExternalConfig{Topics: mqtt.Topics{Prefix: "nh"}, URL: "mqtt://b", ClientID: "g", Dial: l.Dial}), r)
		within(t, 10*time.Second, "online", func() bool { return g.Health().Devices == 1 })
		l.Drop()
		time.Sleep(25 * time.Second)
		r.want(t, "online d1", "received d1 status 0", "offline d1", "online d1", "received d1 status 1")
		g.stop(t)
		l.Close()
	})
}

// What a broker has kept for our absent session is neither retained nor new.
func TestExternalGatewayKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := scripted(t, []bool{true}, func(_ int, conn net.Conn) {
			tell(conn, "nh/gateway", "kept at QoS 1", 1, false)
			tell(conn, "nh/gateway", "kept at QoS 0", 0, false)
			tell(conn, "nh/gateway", "retained", 0, true)
			tell(conn, "nh/gateway", "new", 0, false)
		})
		said := new(recorder)
		g := run(t, external(t, mqtt.ExternalConfig{Topics: mqtt.Topics{Prefix: "nh"}, URL: "mqtt://b", ClientID: "g", Dial: l.Dial,
			OnGateway: func(payload []byte, live bool) { said.note("%s %t", payload, live) }}), new(recorder))
		time.Sleep(5 * time.Second)
		said.want(t, "retained false", "new true")
		g.stop(t)
		l.Close()
	})
}
