"""Real Apache Kafka for tests and benchmarks, with nothing to install but Java and Maven.

The way in is `kafka.KafkaCluster` (brokers), then `witness` and `java` (two independent clients that say what
a log really holds) and `proxy.FaultProxy` (a network that misbehaves on request). Nothing in this package
imports `replicator`: whoever gives evidence must not share code with the accused.
"""
