package auth

import (
	"encoding/binary"
	"fmt"
	"math"
)

// claims is what a token holds: {identifier, signed_at_ms} or, as clients send
// it, {identifier, signed_at_ms, max_age_s}, in Erlang's external term format.
type claims struct {
	identifier string
	signedAt   int64 // Unix milliseconds
}

// Tags of the external term format.
const (
	etfVersion      = 131
	etfSmallInteger = 97
	etfInteger      = 98
	etfSmallTuple   = 104
	etfLargeTuple   = 105
	etfBinary       = 109
	etfSmallBig     = 110
	etfLargeBig     = 111
)

// decodeClaims reads a token's payload. The error wraps errRejected.
func decodeClaims(b []byte) (claims, error) {
	d := etfReader{b: b}
	if d.byte() != etfVersion {
		return claims{}, fmt.Errorf("not an external term: %w", errRejected)
	}
	arity := d.tuple()
	c := claims{identifier: d.binary()}
	c.signedAt = d.integer()
	if arity == 3 {
		d.integer() // max_age: the server has its own
	}
	if d.bad || len(d.b) != 0 || arity != 2 && arity != 3 {
		return claims{}, fmt.Errorf("claims: %w", errRejected)
	}
	return c, nil
}

// An etfReader takes terms off b; after a term that is not as expected, bad is
// set and everything reads as zero.
type etfReader struct {
	b   []byte
	bad bool
}

func (d *etfReader) take(n uint32) []byte {
	if d.bad || uint64(n) > uint64(len(d.b)) {
		d.bad = true
		return nil
	}
	t := d.b[:n]
	d.b = d.b[n:]
	return t
}

func (d *etfReader) byte() byte {
	if t := d.take(1); t != nil {
		return t[0]
	}
	return 0
}

func (d *etfReader) uint32() uint32 {
	if t := d.take(4); t != nil {
		return binary.BigEndian.Uint32(t)
	}
	return 0
}

func (d *etfReader) tuple() uint32 {
	switch d.byte() {
	case etfSmallTuple:
		return uint32(d.byte())
	case etfLargeTuple:
		return d.uint32()
	}
	d.bad = true
	return 0
}

func (d *etfReader) binary() string {
	if d.byte() != etfBinary {
		d.bad = true
	}
	return string(d.take(d.uint32()))
}

// integer reads any encoding of an integer that fits an int64.
func (d *etfReader) integer() int64 {
	switch d.byte() {
	case etfSmallInteger:
		return int64(d.byte())
	case etfInteger:
		return int64(int32(d.uint32()))
	case etfSmallBig:
		return d.big(uint32(d.byte()))
	case etfLargeBig:
		return d.big(d.uint32())
	}
	d.bad = true
	return 0
}

// big reads a sign byte and n digits of base 256, lowest first.
func (d *etfReader) big(n uint32) int64 {
	sign := d.byte()
	var v uint64
	for i, digit := range d.take(n) {
		if digit != 0 && i > 7 {
			d.bad = true
			return 0
		}
		if i < 8 {
			v |= uint64(digit) << (8 * i)
		}
	}
	if sign > 1 || v > math.MaxInt64 {
		d.bad = true
		return 0
	}
	if sign == 1 {
		return -int64(v)
	}
	return int64(v)
}
