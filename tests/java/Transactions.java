import com.fasterxml.jackson.databind.JsonNode;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.RecordMetadata;

/** Producers that keep a transaction open between two commands, so that several can be interleaved in one log. */
final class Transactions {
    private static final long ANSWER_TIMEOUT_S = 60;

    private final Map<String, KafkaProducer<byte[], byte[]>> producers = new HashMap<>();

    /**
     * Does what {@code step} says with the producer whose transactional id is in {@code config}: {@code begin} (a
     * producer that is not there is made), {@code send} and wait until all is in the log, {@code commit}, {@code abort},
     * or {@code close}, which leaves an open transaction to the broker. The offsets of what was sent.
     */
    List<Long> answer(JsonNode command) throws Exception {
        var config = Witness.clientConfig(command);
        String id = config.getProperty("transactional.id");
        if (!producers.containsKey(id)) {
            var made = Witness.newProducer(config);
            made.initTransactions();
            producers.put(id, made);
        }
        var producer = producers.get(id);
        String step = command.get("step").asText();
        switch (step) {
            case "begin" -> producer.beginTransaction();
            case "send" -> {
                return send(producer, command);
            }
            case "commit" -> producer.commitTransaction();
            case "abort" -> producer.abortTransaction();
            case "close" -> producers.remove(id).close(java.time.Duration.ZERO);
            default -> throw new IllegalArgumentException("no such step: " + step);
        }
        return List.of();
    }

    private static List<Long> send(KafkaProducer<byte[], byte[]> producer, JsonNode command) throws Exception {
        var sent = new ArrayList<Future<RecordMetadata>>();
        for (var record : command.get("records")) {
            sent.add(producer.send(Witness.toRecord(command.get("topic").asText(), record)));
        }
        producer.flush();
        var offsets = new ArrayList<Long>();
        for (var one : sent) {
            offsets.add(one.get(ANSWER_TIMEOUT_S, TimeUnit.SECONDS).offset());
        }
        return offsets;
    }
}
