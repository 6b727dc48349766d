// Package pluginpb is plugins/plugin.proto in Go. protoc with protoc-gen-go
// v1.36.11 and protoc-gen-go-grpc v1.6.2 generates it; do not edit it.
package pluginpb

//go:generate protoc -I ../.. --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative plugin.proto
