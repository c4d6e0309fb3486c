package rpc

import (
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
)

// withDetails attaches details; a status that cannot carry them (code OK, or a
// message that does not marshal) is returned without, so that the error itself
// is never hidden by its details.
func withDetails(st *status.Status, details ...protoadapt.MessageV1) error {
	with, err := st.WithDetails(details...)
	if err != nil {
		return st.Err()
	}
	return with.Err()
}
