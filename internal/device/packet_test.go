package device

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestEncode(t *testing.T) {
	long := strings.Repeat("x", 200)
	tests := []struct {
		name string
		got  []byte
		want string // hex
	}{
		{"connect", connectPacket(login{id: "a", keepalive: 30}), "100d 0004 4d515454 04 02 001e 0001 61"},
		{"connect with all", connectPacket(login{id: "a", keepalive: 1, username: "u", password: "p", willTopic: "t", willPayload: "0"}),
			"1019 0004 4d515454 04 ee 0001 0001 61 0001 74 0001 30 0001 75 0001 70"},
		{"subscribe", subscribePacket(7, "a", "b/#"), "820c 0007 0001 61 01 0003 622f23 01"},
		{"publish 0", publishPacket("t", 0, false, []byte("hi")), "3005 0001 74 6869"},
		{"publish 1", publishPacket("t", 9, false, nil), "3205 0001 74 0009"},
		{"publish retained", publishPacket("t", 9, true, nil), "3305 0001 74 0009"},
		{"two bytes of length", publishPacket("t", 0, false, []byte(long)), "30cb01 0001 74" + hex.EncodeToString([]byte(long))},
		{"puback", pubackPacket(0x1234), "4002 1234"},
		{"pingreq", pingreqPacket(), "c000"},
		{"disconnect", disconnectPacket(), "e000"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			want, err := hex.DecodeString(strings.ReplaceAll(test.want, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(test.got, want) {
				t.Errorf("got  % x\nwant % x", test.got, want)
			}
		})
	}
}

func TestDecode(t *testing.T) {
	tests := []struct {
		name, in string // hex
		want     packet
	}{
		{"connack", "2002 0000", packet{kind: typeConnack, codes: []byte{0}, size: 4}},
		{"connack refused", "2002 0005", packet{kind: typeConnack, codes: []byte{5}, size: 4}},
		{"publish 0", "3005 0001 74 6869", packet{kind: typePublish, topic: "t", payload: []byte("hi"), size: 7}},
		{"publish 1 retained dup", "3b06 0001 74 0102 21", packet{kind: typePublish, topic: "t", qos: 1, retain: true, id: 0x102, payload: []byte("!"), size: 8}},
		{"publish empty", "3003 0001 74", packet{kind: typePublish, topic: "t", size: 5}},
		{"puback", "4002 0102", packet{kind: typePuback, id: 0x102, size: 4}},
		{"suback", "9004 0007 0180", packet{kind: typeSuback, id: 7, codes: []byte{1, 0x80}, size: 6}},
		{"pingresp", "d000", packet{kind: typePingresp, size: 2}},
		{"longer than the limit", "3228 0001 74 0102" + strings.Repeat("78", 35), packet{kind: typePublish, topic: "t", qos: 1, id: 0x102, size: 42, cut: true}},
		{"length in more bytes than needed", "d08000", packet{kind: typePingresp, size: 3}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := fromHex(t, test.in+"d000")
			got, err := readPacket(r, 32)
			if err != nil {
				t.Fatal(err)
			}
			if !samePacket(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
			if next, err := readPacket(r, 32); err != nil || next.kind != typePingresp {
				t.Errorf("the next packet: got %+v, %v, want PINGRESP", next, err)
			}
		})
	}
}

func TestDecodeMalformed(t *testing.T) {
	tests := []struct{ name, in string }{
		{"five bytes of length", "30ffffffff01"},
		{"type 0", "0000"},
		{"type 15", "f000"},
		{"type a broker does not send", "8200"},
		{"connack too long", "2003000000"},
		{"connack with flags", "21020000"},
		{"puback of one byte", "400100"},
		{"suback without codes", "90020001"},
		{"pingresp with body", "d00100"},
		{"publish of QoS 2", "34070001740001 2121"},
		{"publish of QoS 3", "36070001740001 2121"},
		{"publish without topic length", "300100"},
		{"publish with empty topic", "30020000"},
		{"topic beyond the packet", "3004 0003 7474"},
		{"topic with NUL", "3003 0001 00"},
		{"topic with wildcard", "3003 0001 23"},
		{"topic not UTF-8", "3003 0001 ff"},
		{"QoS 1 without identifier", "3204 0001 74 01"},
		{"QoS 1 with identifier 0", "3205 0001 74 0000"},
		{"suback longer than the limit", "9028" + strings.Repeat("01", 40)},
		{"topic longer than the limit", "3028 0026" + strings.Repeat("74", 38)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if p, err := readPacket(fromHex(t, test.in), 32); !errors.Is(err, errMalformed) {
				t.Errorf("got %+v, %v, want errMalformed", p, err)
			}
		})
	}
}

func TestDecodeEnd(t *testing.T) {
	for in, want := range map[string]error{"": io.EOF, "30": io.ErrUnexpectedEOF, "3080": io.ErrUnexpectedEOF,
		"300500": io.ErrUnexpectedEOF, "3040 0001 74" + strings.Repeat("78", 40): io.ErrUnexpectedEOF} {
		if p, err := readPacket(fromHex(t, in), 32); err != want {
			t.Errorf("%q: got %+v, %v, want %v", in, p, err, want)
		}
	}
}

func fromHex(t *testing.T, s string) *bufio.Reader {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return bufio.NewReader(bytes.NewReader(b))
}

func samePacket(a, b packet) bool {
	return a.kind == b.kind && a.topic == b.topic && string(a.payload) == string(b.payload) && a.qos == b.qos &&
		a.retain == b.retain && a.id == b.id && string(a.codes) == string(b.codes) && a.size == b.size && a.cut == b.cut
}

// A packet is read within its limit, or there is an error; and what is read as
// a PUBLISH and encoded again is read as the same.
func FuzzReadPacket(f *testing.F) {
	for _, s := range []string{"\x20\x02\x00\x00", "\x30\x05\x00\x01thi", "\x32\x05\x00\x01t\x00\x09", "\x40\x02\x00\x01",
		"\x90\x04\x00\x01\x01\x80", "\xd0\x00", "\x30\xff\xff\xff\x7f\x00\x01t", "\x30\xff\xff\xff\xff\x01", "\x00", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		const limit = 64
		r := bufio.NewReader(bytes.NewReader(in))
		for {
			p, err := readPacket(r, limit)
			if err != nil {
				if !errors.Is(err, errMalformed) && err != io.EOF && err != io.ErrUnexpectedEOF {
					t.Fatalf("untyped error %v", err)
				}
				return
			}
			if len(p.topic)+len(p.payload)+len(p.codes) > limit {
				t.Fatalf("%d bytes kept of a packet, the limit is %d", len(p.topic)+len(p.payload)+len(p.codes), limit)
			}
			if p.kind != typePublish || p.cut {
				continue
			}
			again, err := readPacket(bufio.NewReader(bytes.NewReader(publishPacket(p.topic, p.id, p.retain, p.payload))), limit)
			again.size = p.size // the length may have been written in more bytes than needed
			if err != nil || !samePacket(again, p) {
				t.Fatalf("got %+v, %v\nwant %+v", again, err, p)
			}
		}
	})
}

func TestOffer(t *testing.T) {
	running := Firmware{Version: "1.0.0", UUID: "aaaa", Product: "p", SHA256: "0011"}
	tests := []struct {
		name, in string
		want     Firmware // empty: an error
		runs     bool
	}{
		{"passthrough", `{"update_available":true,"firmware_url":"https://h/f?a=1&b=2","size":3,"checksum":"AB","deployment_id":null,
			"firmware_meta":{"uuid":"BBBB","version":"2.0.0","product":"p","platform":"x","architecture":"arm","author":null,"misc":null}}`,
			Firmware{Version: "2.0.0", UUID: "bbbb", Product: "p", Platform: "x", Architecture: "arm", SHA256: "ab"}, false},
		{"same uuid", `{"firmware_url":"http://h/f","firmware_meta":{"uuid":"AAAA","version":"2.0.0"}}`,
			Firmware{Version: "2.0.0", UUID: "aaaa"}, true},
		{"same version, other uuid", `{"firmware_url":"http://h/f","firmware_meta":{"uuid":"cccc","version":"1.0.0"}}`,
			Firmware{Version: "1.0.0", UUID: "cccc"}, false},
		{"same version, no uuid", `{"firmware_url":"http://h/f","firmware_meta":{"version":"1.0.0"}}`, Firmware{Version: "1.0.0"}, true},
		{"flat", `{"uuid":"cccc","version":"2.0.0","size":3,"sha256":"cd","id":"cd","url":"http://h/fw/cd/t"}`,
			Firmware{Version: "2.0.0", UUID: "cccc", SHA256: "cd"}, false},
		{"flat of the same digest", `{"uuid":"cccc","version":"2.0.0","sha256":"0011","url":"http://h/f"}`,
			Firmware{Version: "2.0.0", UUID: "cccc", SHA256: "0011"}, true},
		{"flat of the same version", `{"uuid":"cccc","version":"1.0.0","sha256":"cd","url":"http://h/f"}`,
			Firmware{Version: "1.0.0", UUID: "cccc", SHA256: "cd"}, true},
		{"flat of a version that repeats", `{"uuid":"cccc","version":"1.0.0","sha256":"cd","prove":true,"url":"http://h/f"}`,
			Firmware{Version: "1.0.0", UUID: "cccc", SHA256: "cd"}, false},
		{"not available", `{"update_available":false,"firmware_url":null,"firmware_meta":null,"size":null,"checksum":null}`, Firmware{}, false},
		{"no URL", `{"firmware_meta":{"uuid":"cccc"}}`, Firmware{}, false},
		{"ftp", `{"firmware_url":"ftp://h/f","firmware_meta":{"uuid":"cccc"}}`, Firmware{}, false},
		{"names nothing", `{"firmware_url":"http://h/f","firmware_meta":{}}`, Firmware{}, false},
		{"larger than flash", `{"firmware_url":"http://h/f","firmware_meta":{"uuid":"cccc"},"size":67108865}`, Firmware{}, false},
		{"negative size", `{"firmware_url":"http://h/f","firmware_meta":{"uuid":"cccc"},"size":-1}`, Firmware{}, false},
		{"not JSON", `1.2.3`, Firmware{}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o, err := parseOffer([]byte(test.in))
			if (err != nil) != (test.want == Firmware{}) {
				t.Fatalf("error %v", err)
			}
			if err != nil {
				return
			}
			if o.firmware != test.want {
				t.Errorf("got  %+v\nwant %+v", o.firmware, test.want)
			}
			if got := o.runs(running); got != test.runs {
				t.Errorf("runs: got %v, want %v", got, test.runs)
			}
		})
	}
}

func FuzzOffer(f *testing.F) {
	f.Add([]byte(`{"update_available":true,"firmware_url":"https://h/f","firmware_meta":{"uuid":"b","version":"2.0.0"},"size":3,"checksum":"AB"}`))
	f.Add([]byte(`{"uuid":"c","version":"2.0.0","size":3,"sha256":"cd","url":"http://h/fw/cd/t","prove":true}`))
	f.Add([]byte(`{"update_available":false}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		o, err := parseOffer(in)
		if err != nil {
			return
		}
		if !o.runs(o.installed(Firmware{}, o.sha256)) {
			t.Fatalf("%q is offered again after it was installed", in)
		}
	})
}
