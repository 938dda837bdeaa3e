package backstaygrpc

import (
	"reflect"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	"github.com/backstay/backstay/retry"
)

// messages are a unary call's request and reply.
//
// Each attempt has a reply of its own, as far as anybody could tell the difference:
// one that may have a hedge beside it is given a new one, and for one that follows
// another the caller's is made as it was.
type messages struct {
	request, reply any
	own            bool          // each attempt has a new reply
	saved          reflect.Value // what was in a reply that is no proto message
}

// prepare makes the messages ready for a call that may be repeated, or hedged. It
// returns false if the reply can be filled in but once.
func (m *messages) prepare(hedged bool) bool {
	if messageOf(m.reply) == nil {
		v := reflect.ValueOf(m.reply)
		if v.Kind() != reflect.Pointer || v.IsNil() {
			return false
		}
		m.saved = reflect.New(v.Type().Elem()).Elem()
		m.saved.Set(v.Elem())
	}
	if m.own = hedged; hedged {
		// A hedge that has lost may still be at it when the caller, who has got his
		// answer, changes his request.
		if request := messageOf(m.request); request != nil {
			m.request = proto.Clone(request)
		}
	}
	return true
}

// next returns the reply for an attempt.
func (m *messages) next(number int) any {
	message := messageOf(m.reply)
	switch {
	case m.own && message != nil:
		return message.ProtoReflect().New().Interface()
	case m.own:
		reply := reflect.New(m.saved.Type())
		reply.Elem().Set(m.saved)
		return reply.Interface()
	case number <= 1:
	case message != nil:
		proto.Reset(message)
	case m.saved.IsValid():
		reflect.ValueOf(m.reply).Elem().Set(m.saved)
	}
	return m.reply
}

// give puts an attempt's reply into the caller's.
func (m *messages) give(reply any) {
	if !m.own {
		return
	}
	if message := messageOf(m.reply); message != nil {
		proto.Reset(message)
		proto.Merge(message, messageOf(reply))
		return
	}
	reflect.ValueOf(m.reply).Elem().Set(reflect.ValueOf(reply).Elem())
}

// messageOf returns v as grpc's codec takes it, or nil if it is no proto message.
func messageOf(v any) proto.Message {
	switch v := v.(type) {
	case protoadapt.MessageV1:
		return protoadapt.MessageV2Of(v)
	case protoadapt.MessageV2:
		return v
	}
	return nil
}

// hedges reports whether there may be hedges by a retrier's settings.
func hedges(c *retry.Config) bool { return c.Hedge.Delay > 0 || c.Hedge.Percentile > 0 }
