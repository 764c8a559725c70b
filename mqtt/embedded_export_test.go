package mqtt

import "reflect"

// Hooks is how many hooks mochi asks.
func (e *Embedded) Hooks() int {
	return int(reflect.ValueOf(e.srv).Elem().FieldByName("hooks").Elem().FieldByName("qty").Int())
}

// Remembered is how many devices the broker keeps anything for.
func (e *Embedded) Remembered() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return max(len(e.boxes), e.srv.Clients.Len(), e.sessions)
}
