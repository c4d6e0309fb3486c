package rpc

import (
	"slices"

	"google.golang.org/grpc"
)

// registrar registers every call as a stream. gRPC reads the message of a call that is
// answered once before it asks an interceptor; the message of a stream is read by its
// handler, when the interceptors have let it in. On the wire both are the same.
// A tap (google.golang.org/grpc/tap) is asked as early, but the context of a call that
// it refuses is never canceled: one with a long deadline would stay in memory.
type registrar struct {
	server *grpc.Server
	// read is asked when the message of a call that is answered once was read.
	read grpc.UnaryServerInterceptor
}

// RegisterService implements grpc.ServiceRegistrar.
func (r registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	d := *desc
	d.Methods, d.Streams = nil, slices.Clone(desc.Streams)
	for _, m := range desc.Methods {
		// ServerStreams, for gRPC asks no interceptor about what streams in no direction.
		d.Streams = append(d.Streams, grpc.StreamDesc{StreamName: m.MethodName, Handler: r.once(m.Handler), ServerStreams: true})
	}
	r.server.RegisterService(&d, impl)
}

// once makes a stream of one request and one answer of a call.
func (r registrar) once(handle grpc.MethodHandler) grpc.StreamHandler {
	return func(srv any, stream grpc.ServerStream) error {
		answer, err := handle(srv, stream.Context(), stream.RecvMsg, r.read)
		if err != nil {
			return err
		}
		return stream.SendMsg(answer)
	}
}
