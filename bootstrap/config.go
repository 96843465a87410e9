package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path"
)

// ControlPlaneCluster is the name of the static cluster that reaches outriggerd.
// No cluster that comes by xDS may have it.
const ControlPlaneCluster = "outriggerd"

// A Node is the pod that a configuration is for, and where its sidecar keeps its
// files.
type Node struct {
	Namespace      string
	Pod            string
	UID            string
	ServiceAccount string
	// Zone is the pod's topology zone. Empty means that it is not known.
	Zone string
	// StateDir is where key, certificates and sockets are. Empty is [StateDir].
	StateDir string
}

// An object is a message in Envoy's JSON. The protobuf types of Envoy's API would
// cost the agent several times the memory that it may have, so only the tests
// use them: there they read back, strictly, what is written here.
type object = map[string]any

type list = []any

// Config returns the configuration that Envoy starts with, as JSON. Equal
// arguments give equal bytes. It fails where Settings are not valid or the Node
// lacks a part of its identity.
func Config(s Settings, n Node) ([]byte, error) {
	if err := errors.Join(s.Validate(), n.validate()); err != nil {
		return nil, fmt.Errorf("make Envoy's bootstrap: %w", err)
	}
	files := FilesIn(n.StateDir)
	config := object{
		"node":                 n.node(),
		"admin":                admin(files),
		"dynamic_resources":    dynamicResources(),
		"static_resources":     object{"clusters": list{controlPlane(s, files)}},
		"stats_config":         statsConfig(),
		"stats_flush_on_admin": true,
		"layered_runtime":      runtime(),
		// Denied calls are answered by listeners inside Envoy.
		"bootstrap_extensions": list{object{
			"name":         "envoy.bootstrap.internal_listener",
			"typed_config": typed("envoy.extensions.bootstrap.internal_listener.v3.InternalListener", object{}),
		}},
	}
	if s.MemoryLimit > 0 {
		config["overload_manager"] = overloadManager(s.MemoryLimit)
	}
	return json.MarshalIndent(config, "", "  ")
}

func (n Node) validate() error {
	var errs []error
	for _, part := range []struct{ name, value string }{
		{"namespace", n.Namespace}, {"pod name", n.Pod}, {"pod uid", n.UID}, {"service account", n.ServiceAccount},
	} {
		if part.value == "" {
			errs = append(errs, fmt.Errorf("the node's %s is empty", part.name))
		}
	}
	return errors.Join(errs...)
}

func (n Node) node() object {
	node := object{
		"id":      n.Namespace + "/" + n.Pod + "/" + n.UID,
		"cluster": n.ServiceAccount + "." + n.Namespace,
	}
	if n.Zone != "" {
		node["locality"] = object{"zone": n.Zone}
	}
	return node
}

// admin listens where only the sidecar's user gets: at a loopback port any
// container of the pod could stop Envoy.
func admin(files Files) object {
	return object{
		"address":                  object{"pipe": object{"path": files.AdminSocket, "mode": 0o600}},
		"ignore_global_conn_limit": true, // the agent asks here whether Envoy is ready
	}
}

// dynamicResources waits for ever for the first listeners and clusters: a
// sidecar without them must not report that it is ready.
func dynamicResources() object {
	byADS := object{"ads": object{}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
	return object{
		"cds_config": byADS,
		"lds_config": byADS,
		"ads_config": object{
			"api_type":                       "DELTA_GRPC",
			"transport_api_version":          "V3",
			"set_node_on_first_message_only": true,
			"grpc_services":                  list{object{"envoy_grpc": object{"cluster_name": ControlPlaneCluster}}},
		},
	}
}

func controlPlane(s Settings, files Files) object {
	host, port, _ := splitHostPort(s.ControlPlane) // valid: Config has checked
	address := object{"socket_address": object{"address": host, "port_value": port}}
	return object{
		"name":            ControlPlaneCluster,
		"connect_timeout": "5s",
		"cluster_type": object{
			"name": "envoy.clusters.dns",
			"typed_config": typed("envoy.extensions.clusters.dns.v3.DnsCluster", object{
				"dns_lookup_family": "ALL",
				// The name of a Service, whose address hardly ever changes.
				"dns_refresh_rate":         "30s",
				"dns_failure_refresh_rate": object{"base_interval": "0.5s", "max_interval": "10s"},
			}),
		},
		"load_assignment": object{
			"cluster_name": ControlPlaneCluster,
			"endpoints":    list{object{"lb_endpoints": list{object{"endpoint": object{"address": address}}}}},
		},
		"typed_extension_protocol_options": object{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed("envoy.extensions.upstreams.http.v3.HttpProtocolOptions", object{
				"explicit_http_config": object{"http2_protocol_options": object{
					// A stream that is silent by nature must notice a peer that is gone.
					"connection_keepalive": object{"interval": "30s", "timeout": "10s"},
				}},
			}),
		},
		"transport_socket": object{
			"name":         "envoy.transport_sockets.tls",
			"typed_config": controlPlaneTLS(s.ControlPlaneID, host, files),
		},
	}
}

func controlPlaneTLS(id, host string, files Files) object {
	context := object{
		"common_tls_context": object{
			"tls_params": object{"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
			"tls_certificate_sds_secret_configs": list{
				object{"name": CertificateName, "sds_config": watched(files.Certificate)},
			},
			"combined_validation_context": object{
				"default_validation_context": object{
					"match_typed_subject_alt_names": list{object{"san_type": "URI", "matcher": object{"exact": id}}},
				},
				"validation_context_sds_secret_config": object{"name": TrustName, "sds_config": watched(files.Trust)},
			},
		},
	}
	if _, err := netip.ParseAddr(host); err != nil { // TLS knows no addresses as SNI
		context["sni"] = host
	}
	return typed("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", context)
}

// watched is a secret in a file that is replaced by rename, which only a watch
// of the folder sees.
func watched(file string) object {
	return object{
		"resource_api_version": "V3",
		"path_config_source":   object{"path": file, "watched_directory": object{"path": path.Dir(file)}},
	}
}

// RuntimeName is the resource of type Runtime that a proxy asks for.
const RuntimeName = "outrigger"

// runtime is fixed, but for what comes by xDS. Without a layer of our own Envoy adds
// one that its admin interface can change.
func runtime() object {
	byADS := object{"name": RuntimeName, "rtds_config": object{"ads": object{}, "resource_api_version": "V3"}}
	return object{"layers": list{object{"name": "static", "static_layer": object{
		// Or an answer that ends with its connection, such as a refusal, is lost on
		// the way out of a listener inside Envoy.
		"envoy.reloadable_features.enable_send_rst_on_user_space_socket": false,
		// By default Envoy refuses regular expressions of a hundred characters; what
		// the control plane lets through (mesh.CheckRegex) is far below this.
		"re2.max_program_size.error_level": 200_000,
	}}, object{"name": RuntimeName, "rtds_layer": byADS}}}
}

func typed(message string, fields object) object {
	fields["@type"] = "type.googleapis.com/" + message
	return fields
}
