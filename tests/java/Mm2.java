import com.fasterxml.jackson.databind.JsonNode;
import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.lang.reflect.AccessibleObject;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalLong;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.common.MessageFormatter;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.connect.mirror.Checkpoint;
import org.apache.kafka.connect.mirror.Heartbeat;
import org.apache.kafka.connect.mirror.OffsetSync;
import org.apache.kafka.connect.mirror.RemoteClusterUtils;

/**
 * MirrorMaker 2's own code as a witness: what {@link Witness} answers to commands whose op begins with {@code mm2_}.
 *
 * <p>A {@code kind} is the name of one of its record classes: OffsetSync, Checkpoint or Heartbeat. Where it keeps a method
 * to its own package, the method is called all the same: by reflection.
 */
final class Mm2 {
    private static final String PACKAGE = "org.apache.kafka.connect.mirror.";
    private static final Duration TRANSLATE_TIMEOUT = Duration.ofSeconds(30);

    private Mm2() {}

    static Object answer(String op, JsonNode command) throws Exception {
        return switch (op) {
            case "mm2_encode" -> encode(command);
            case "mm2_decode" -> decode(command);
            case "mm2_format" -> format(command);
            case "mm2_topology" -> topology(command);
            case "mm2_translate" -> translate(command);
            case "mm2_sync_store" -> syncStore(command);
            default -> throw new IllegalArgumentException("unknown op " + op);
        };
    }

    /** The record's key and value as MirrorMaker 2 would send them. */
    private static List<byte[]> encode(JsonNode command) throws Exception {
        var fields = command.get("fields");
        Object record = switch (command.get("kind").asText()) {
            case "OffsetSync" -> new OffsetSync(partition(fields, 0), fields.get(2).asLong(), fields.get(3).asLong());
            case "Checkpoint" -> new Checkpoint(fields.get(0).asText(), partition(fields, 1), fields.get(3).asLong(),
                fields.get(4).asLong(), fields.get(5).asText());
            case "Heartbeat" -> new Heartbeat(fields.get(0).asText(), fields.get(1).asText(), fields.get(2).asLong());
            default -> throw new IllegalArgumentException("unknown kind");
        };
        return List.of((byte[]) call(record, "recordKey"), (byte[]) call(record, "recordValue"));
    }

    private static TopicPartition partition(JsonNode fields, int at) {
        return new TopicPartition(fields.get(at).asText(), fields.get(at + 1).asInt());
    }

    /** The record's fields as MirrorMaker 2 reads them. */
    private static List<Object> decode(JsonNode command) throws Exception {
        var raw = record(command.get("record"));
        switch (command.get("kind").asText()) {
            case "OffsetSync" -> {
                var sync = OffsetSync.deserializeRecord(raw);
                var of = sync.topicPartition();
                return List.of(of.topic(), of.partition(), sync.upstreamOffset(), sync.downstreamOffset());
            }
            case "Checkpoint" -> {
                var checkpoint = Checkpoint.deserializeRecord(raw);
                var of = checkpoint.topicPartition();
                return List.of(checkpoint.consumerGroupId(), of.topic(), of.partition(), checkpoint.upstreamOffset(),
                    checkpoint.downstreamOffset(), checkpoint.metadata());
            }
            case "Heartbeat" -> {
                var beat = Heartbeat.deserializeRecord(raw);
                return List.of(beat.sourceClusterAlias(), beat.targetClusterAlias(), beat.timestamp());
            }
            default -> throw new IllegalArgumentException("unknown kind");
        }
    }

    /** What kafka-console-consumer would print with MirrorMaker 2's formatter of the kind: a line a record. */
    private static List<String> format(JsonNode command) throws Exception {
        var lines = new ByteArrayOutputStream();
        var name = PACKAGE + "formatters." + command.get("kind").asText() + "Formatter";
        try (var formatter = (MessageFormatter) Class.forName(name).getConstructor().newInstance();
                var out = new PrintStream(lines, true, StandardCharsets.UTF_8)) {
            formatter.configure(Map.of());
            for (var node : command.get("records")) {
                formatter.writeTo(record(node), out);
            }
        }
        return lines.toString(StandardCharsets.UTF_8).lines().toList();
    }

    private static ConsumerRecord<byte[], byte[]> record(JsonNode node) throws Exception {
        return new ConsumerRecord<>("topic", 0, 0, node.get(0).binaryValue(), node.get(1).binaryValue());
    }

    /** What RemoteClusterUtils finds out from the names of topics. */
    private static Map<String, Object> topology(JsonNode command) throws Exception {
        var config = clientConfig(command);
        var hops = new HashMap<String, Integer>();
        for (var alias : command.get("aliases")) {
            hops.put(alias.asText(), RemoteClusterUtils.replicationHops(config, alias.asText()));
        }
        return Map.of(
            "upstream", RemoteClusterUtils.upstreamClusters(config),
            "heartbeats", RemoteClusterUtils.heartbeatTopics(config),
            "checkpoints", RemoteClusterUtils.checkpointTopics(config),
            "hops", hops);
    }

    /** [topic, partition, offset, metadata] of each partition for which there is a checkpoint of the group. */
    private static List<List<Object>> translate(JsonNode command) throws Exception {
        var alias = command.get("alias").asText();
        var group = command.get("group").asText();
        var rows = new ArrayList<List<Object>>();
        var found = RemoteClusterUtils.translateOffsets(clientConfig(command), alias, group, TRANSLATE_TIMEOUT);
        found.forEach((of, to) -> rows.add(List.of(of.topic(), of.partition(), to.offset(), to.metadata())));
        return rows;
    }

    private static Map<String, Object> clientConfig(JsonNode command) {
        var config = new HashMap<String, Object>(connectorConfig(command));
        config.put("bootstrap.servers", command.get("bootstrap").asText());
        return config;
    }

    private static Map<String, String> connectorConfig(JsonNode command) {
        var config = new HashMap<String, String>();
        for (var property : command.path("config").properties()) {
            config.put(property.getKey(), property.getValue().asText());
        }
        return config;
    }

    /**
     * What MirrorCheckpointTask would make of each of the offsets of a source partition, after it has read the topic of
     * offset syncs that its configuration names: an offset of the target, -1 for "before all that is known", or null.
     * It is one that could read back its checkpoints; one that could not trusts nothing but the newest sync.
     */
    private static List<Long> syncStore(JsonNode command) throws Exception {
        var configClass = Class.forName(PACKAGE + "MirrorCheckpointConfig");
        var config = configClass.getConstructor(Map.class).newInstance(connectorConfig(command));
        var constructor = open(Class.forName(PACKAGE + "OffsetSyncStore").getDeclaredConstructor(configClass));
        var of = partition(command.get("partition"), 0);
        var answers = new ArrayList<Long>();
        try (var store = (AutoCloseable) constructor.newInstance(config)) {
            call(store, "start", false);
            for (var offset : command.get("offsets")) {
                var found = (OptionalLong) call(store, "translateDownstream", "group", of, offset.asLong());
                answers.add(found.isPresent() ? found.getAsLong() : null);
            }
        }
        return answers;
    }

    /** Calls the one method of the name and number of arguments, public or not. */
    private static Object call(Object on, String name, Object... arguments) throws Exception {
        var method = Arrays.stream(on.getClass().getDeclaredMethods())
            .filter(each -> each.getName().equals(name) && each.getParameterCount() == arguments.length)
            .findFirst().orElseThrow(() -> new NoSuchMethodException(on.getClass() + "." + name));
        return open(method).invoke(on, arguments);
    }

    private static <T extends AccessibleObject> T open(T member) {
        member.setAccessible(true);
        return member;
    }
}
