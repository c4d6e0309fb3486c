package client

import (
	"context"
	"fmt"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/droverhq/drover/core/errs"
	"github.com/droverhq/drover/core/rpc"
)

// checkText refuses a request before anything is sent, or a connection is made: such
// a request cannot be encoded, whatever the scheduler does.
func checkText(req any) error {
	m, ok := req.(proto.Message)
	if !ok {
		return nil
	}
	if field, text := notText(m.ProtoReflect()); field != "" {
		return errs.Field("send the request", field, "USAGE", "%q is not UTF-8", text)
	}
	return nil
}

// notText returns the name of the first field whose text is not UTF-8, and the text.
func notText(m protoreflect.Message) (field, text string) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(f.Name())
		switch {
		case f.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				if field, text = notTextValue(name, f.MapKey(), k.Value()); field == "" {
					field, text = notTextValue(fmt.Sprintf("%s[%q]", name, k.String()), f.MapValue(), v)
				}
				return field == ""
			})
		case f.IsList():
			for i := 0; i < v.List().Len() && field == ""; i++ {
				if field, text = notTextValue(name, f, v.List().Get(i)); field == name {
					field = fmt.Sprintf("%s[%d]", name, i)
				}
			}
		default:
			field, text = notTextValue(name, f, v)
		}
		return field == ""
	})
	return field, text
}

func notTextValue(name string, f protoreflect.FieldDescriptor, v protoreflect.Value) (field, text string) {
	switch f.Kind() {
	case protoreflect.StringKind:
		if s := v.String(); !utf8.ValidString(s) {
			return name, s
		}
	case protoreflect.MessageKind:
		return notText(v.Message())
	}
	return "", ""
}

// textConn checks every request, before a connection is needed for it.
type textConn struct {
	rpc.Conn
}

// Invoke implements grpc.ClientConnInterface.
func (c textConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if err := checkText(args); err != nil {
		return err
	}
	return c.Conn.Invoke(ctx, method, args, reply, opts...) //nolint:wrapcheck // a status, for Explain
}

// NewStream implements grpc.ClientConnInterface.
func (c textConn) NewStream(ctx context.Context, d *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := c.Conn.NewStream(ctx, d, method, opts...)
	if err != nil {
		return nil, err //nolint:wrapcheck // a status, for Explain
	}
	return textStream{stream}, nil
}

// textStream checks what is sent.
type textStream struct {
	grpc.ClientStream
}

// SendMsg implements grpc.ClientStream.
func (s textStream) SendMsg(m any) error {
	if err := checkText(m); err != nil {
		return err
	}
	return s.ClientStream.SendMsg(m) //nolint:wrapcheck // a status, for Explain
}
